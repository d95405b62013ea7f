"""Other models in the layout of the first: names; tensors apart, in one, or the other way round.

Rules come from the recipe (`key_map`), then from the tables of known families. Names that match
are left alone; what no rule knows keeps its name, and is an error of `match`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..checkpoint.folder import Checkpoint
from ..errors import InputError, UsageError
from ..messages import counted
from ..recipe.key_map import Key, Layout, LayoutRule, Members, find, missing, without_numbers
from ..recipe.schema import KeyRule
from ..tensors.source import TensorSource
from ..tensors.views import concat, reshape
from .known_layouts import PREFIXES, RULES, of_heads
from .regroup import Shapes, regroup

Held = Mapping[Layout, Members]


def convert_models(
    models: Sequence[Checkpoint], labels: Sequence[str], key_map: Sequence[KeyRule]
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """The models with the tensors of all but the first as the first has them, and what was done.

    InputError for tensors that are there in two forms, or in part; UsageError for a rule of the
    recipe that nothing fits.
    """
    found, notes, faults = [models[0]], [], []
    idle = list(key_map)
    for model, label in zip(models[1:], labels[1:], strict=True):
        work = _Model(models[0].tensors, dict(model.tensors), (labels[0], label))
        try:
            for rule in key_map:
                if rule.model in (None, label) and work.apply(rule.rule) and rule in idle:
                    idle.remove(rule)
            if not work.fits():
                work.known((*RULES, *of_heads(model.config)))
        except ValueError as error:
            faults.append(f"{label}: {error}")
        found.append(replace(model, tensors=work.names) if work.counts else model)
        if work.counts:
            done = ", ".join(
                f"{counted(count, 'tensors')} {what}" for what, count in work.counts.items()
            )
            notes.append(f"{label} is in another layout than {labels[0]}: {done}")
    if faults:
        hint = (
            f"  it has the names of {labels[0]} in another layout; are both of one kind and size?"
        )
        raise InputError("\n".join([*faults, hint]))
    if idle and len(models) > 1:
        raise UsageError("\n".join(_idle(rule, labels[0]) for rule in idle))
    return tuple(found), notes


def _idle(rule: KeyRule, first: str) -> str:
    return (
        f"{rule.place}: no tensor of {rule.model or 'the other models'} is called "
        f"{rule.rule.forms[0].shown}; key_map goes from their names to those of {first}"
    )


@dataclass
class _Model:
    """The tensors of one model on their way to the layout of `first`."""

    first: Mapping[str, TensorSource]
    names: dict[str, TensorSource]
    labels: tuple[str, str]
    counts: dict[str, int] = field(default_factory=dict)

    def fits(self) -> bool:
        """Whether there is nothing to do: the same names, the same shapes."""
        same = self.names.keys() == self.first.keys()
        return same and all(s.shape == self.first[n].shape for n, s in self.names.items())

    def known(self, rules: Iterable[LayoutRule]) -> None:
        """Apply the rules of the tables."""
        self.refuse_turned_heads()
        self.prefixes()
        here, there = sorted(self.names), sorted(self.first)
        for rule in rules:
            self.by_style(rule, find(rule, here), find(rule, there))

    def refuse_turned_heads(self) -> None:
        """Queries and keys of Meta's own format: other names, and their rows in another order."""
        for names, label in zip((self.names, self.first), self.labels[::-1], strict=True):
            other = self.first if names is self.names else self.names
            meta = next((name for name in names if name.endswith("attention.wq.weight")), None)
            if meta and any(name.endswith("self_attn.q_proj.weight") for name in other):
                raise ValueError(
                    f"{meta} of {label} is in the format of Llama's and Mistral's own code, whose "
                    f"rows of queries and keys are in another order; convert the model for "
                    f"transformers first"
                )

    def prefixes(self) -> None:
        """Other beginnings of names: the longest that fit first, and of them what fits most."""
        done: set[tuple[str, str]] = set()  # none comes again, nor goes back
        while True:
            wanted = self.first.keys() - self.names.keys()
            lone = [name for name in self.names if name not in self.first]
            fits: dict[tuple[str, str], int] = {}
            for old, new in (pair for both in PREFIXES for pair in (both, both[::-1])):
                if {(old, new), (new, old)} & done:
                    continue
                hits = sum(n.startswith(old) and new + n[len(old) :] in wanted for n in lone)
                fits |= {(old, new): hits} if hits else {}
            if not fits:
                return
            old, new = best = max(fits, key=lambda pair: (len(pair[0]), fits[pair]))
            done.add(best)
            rivals = [p for p in fits if p[0] == old and fits[p] == fits[best]]
            if len(rivals) > 1:
                listed = " or ".join(f"'{beginning}…'" for _, beginning in rivals)
                raise ValueError(f"'{old}…' could mean {listed} of {self.labels[0]}")
            for name in [n for n in lone if n.startswith(old)]:
                rest = name[len(old) :]
                # Also what is in another form below; but nothing that the first has no place for.
                place = f"{new}{rest.partition('.')[0]}."
                if new + rest in wanted or any(n.startswith(place) for n in self.first):
                    self.put({new + rest: self.names[name]}, [name], "renamed")

    def by_style(
        self, rule: LayoutRule, here: Mapping[Key, Held], there: Mapping[Key, Held]
    ) -> None:
        """Convert every instance of a rule to the layout that the first model uses.

        A layer missing from the first model is converted to the layout of its other layers.
        """
        alike = {without_numbers(key): forms for key, forms in reversed(list(there.items()))}
        for key, forms in here.items():
            wanted = there.get(key) or alike.get(without_numbers(key))
            forms = {form: held for form, held in forms.items() if self.is_open(held)}
            if not wanted or not forms:
                continue
            if wanted.keys() == forms.keys():
                self.recut(rule, key, forms, wanted)
                continue
            self.none_twice(forms, "there are")
            self.none_twice(wanted, f"{self.labels[0]} has")
            goal, form = next(iter(wanted)), next(iter(forms))
            if lost := missing(rule, form, forms[form], key):
                raise ValueError(
                    f"{_some(forms[form])} is there, but {lost[0]} is not; of both, "
                    f"{self.labels[0]} has {_some(wanted[goal])}"
                )
            self.convert(rule, key, forms, (goal, self.shapes(rule, wanted[goal])))

    def recut(self, rule: LayoutRule, key: Key, forms: Held, wanted: Held) -> None:
        """Parts of what was one tensor, cut in other places: transformers cuts into equal parts."""
        form, one = next(iter(forms)), next((f for f in rule.forms if len(f.names) == 1), None)
        shapes = self.shapes(rule, wanted[form])
        if (
            one is None
            or one.groups > 1
            or rule.stacks
            or shapes is None
            or len(forms[form]) != rule.size
        ):
            return
        sources = [self.names[forms[form][place, 0]] for place in range(rule.size)]
        rows = [[shape[:1] for shape in each] for each in (shapes, [s.shape for s in sources])]
        if rows[0] != rows[1]:
            joined = {(0, 0): concat(sources, 0, sources[0].name)}
            made = regroup(rule, key, (one, joined), (form, shapes))
            self.put(made, forms[form].values(), "cut in other places")

    def is_open(self, members: Members) -> bool:
        """Whether no rule has taken the tensors yet."""
        return all(name in self.names for name in members.values())

    def none_twice(self, forms: Held, begin: str) -> None:
        if len(forms) > 1:
            one, two = [_some(members) for members in forms.values()][:2]
            raise ValueError(
                f"{begin} both {one} and {two}, two forms of the same; remove one of them"
            )

    def shapes(self, rule: LayoutRule, members: Members) -> Shapes | None:
        """Shapes of the tensors of a group, where the first model has them apart and unstacked."""
        if len(members) != rule.size or rule.size == 1 or rule.stacks:
            return None
        return [self.first[members[place, 0]].shape for place in range(rule.size)]

    def apply(self, rule: LayoutRule) -> int:
        """A rule of the recipe, wherever it fits; how often. ValueError where it cannot be done."""
        form, goal = rule.forms
        there = find(rule, sorted(self.first))
        count = 0
        for key, forms in find(rule, sorted(self.names)).items():
            if form not in forms:
                continue
            if lost := missing(rule, form, forms[form], key):
                raise ValueError(f"{_some(forms[form])} is there, but {lost[0]} is not")
            shapes = self.shapes(rule, there.get(key, {}).get(goal, {}))
            self.convert(rule, key, {form: forms[form]}, (goal, shapes))
            count += 1
        return count

    def convert(
        self, rule: LayoutRule, key: Key, held: Held, want: tuple[Layout, Shapes | None]
    ) -> None:
        """Replace the tensors of one instance by the same in another form."""
        form, members = next(iter(held.items()))
        sources = {place: self.names[name] for place, name in members.items()}
        made = regroup(rule, key, (form, sources), want)
        plain = len(made) == len(sources) and form.transposed == want[0].transposed
        self.put(made, members.values(), "renamed" if plain else "regrouped")

    def put(self, made: Mapping[str, TensorSource], old: Iterable[str], what: str) -> None:
        """Exchange tensors for others."""
        gone = list(old)
        for name in gone:
            del self.names[name]
        for name, source in made.items():
            if name in self.names:
                raise ValueError(f"both {name} and {gone[0]} would be {name} of {self.labels[0]}")
            self.names[name] = reshape(source, source.shape, name)
        self.counts[what] = self.counts.get(what, 0) + len(made)


def _some(members: Members) -> str:
    return next(iter(members.values()))
