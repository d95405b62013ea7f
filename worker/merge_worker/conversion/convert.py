"""Other models in the layout of the first: names; tensors split, fused or transposed.

Rules come from the recipe (`key_map`), then from the known layouts. Names that match are left
alone; a tensor that fits no rule keeps its name, and is an error of `planning.matching`.
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
from .known_layouts import known_layouts
from .regroup import Shapes, regroup

Instance = Mapping[Layout, Members]
"""The tensors of one group, in each layout that a model has of it."""


def convert_models(
    models: Sequence[Checkpoint], labels: Sequence[str], key_map: Sequence[KeyRule]
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Give all models the layout of the first. Return them, and notes on what was done.

    Raises InputError for tensors that are there in two layouts or in part, and UsageError for a
    rule of the recipe that fits no tensor.
    """
    converted, notes, faults = [models[0]], [], []
    unused = list(key_map)
    for model, label in zip(models[1:], labels[1:], strict=True):
        work = _Conversion(models[0].tensors, dict(model.tensors), (labels[0], label))
        try:
            for rule in key_map:
                if rule.model in (None, label) and work.apply_key_map(rule.rule) and rule in unused:
                    unused.remove(rule)
            if not work.is_done():
                work.apply_known(known_layouts().rules_of(model.config))
        except ValueError as error:
            faults.append(f"{label}: {error}")
        converted.append(replace(model, tensors=work.tensors) if work.counts else model)
        if work.counts:
            changes = (f"{counted(count, 'tensors')} {verb}" for verb, count in work.counts.items())
            notes.append(f"{label} is in another layout than {labels[0]}: {', '.join(changes)}")
    if faults:
        hint = (
            f"  it has the names of {labels[0]} in another layout; are both of one kind and size?"
        )
        raise InputError("\n".join([*faults, hint]))
    if unused and len(models) > 1:
        raise UsageError(
            "\n".join(
                f"{rule.place}: no tensor of {rule.model or 'the other models'} is called "
                f"{', '.join(rule.rule.layouts[0].names)}; key_map goes from their names to those "
                f"of {labels[0]}"
                for rule in unused
            )
        )
    return tuple(converted), notes


@dataclass
class _Conversion:
    """The tensors of one model on their way to the layout of `first`."""

    first: Mapping[str, TensorSource]
    tensors: dict[str, TensorSource]
    labels: tuple[str, str]
    counts: dict[str, int] = field(default_factory=dict)

    def is_done(self) -> bool:
        same = self.tensors.keys() == self.first.keys()
        return same and all(s.shape == self.first[n].shape for n, s in self.tensors.items())

    def apply_key_map(self, rule: LayoutRule) -> int:
        """Apply a rule of the recipe wherever it fits, and return how often. Raises ValueError."""
        layout, goal = rule.layouts
        wanted = find(rule, sorted(self.first))
        count = 0
        for key, instance in find(rule, sorted(self.tensors)).items():
            if layout not in instance:
                continue
            if absent := missing(rule, layout, instance[layout], key):
                raise ValueError(f"{_some(instance[layout])} is there, but {absent[0]} is not")
            shapes = self.shapes(rule, wanted.get(key, {}).get(goal, {}))
            self.convert(rule, key, (layout, instance[layout]), (goal, shapes))
            count += 1
        return count

    def apply_known(self, rules: Iterable[LayoutRule]) -> None:
        self.refuse_permuted_heads()
        self.replace_prefixes()
        names, first_names = sorted(self.tensors), sorted(self.first)
        for rule in rules:
            self.apply_rule(rule, find(rule, names), find(rule, first_names))

    def refuse_permuted_heads(self) -> None:
        """Raise for Meta's own format: queries and keys have other names and order of rows."""
        models = (self.tensors, self.first)
        for names, other, label in zip(models, models[::-1], self.labels[::-1], strict=True):
            meta = next((name for name in names if name.endswith("attention.wq.weight")), None)
            if meta and any(name.endswith("self_attn.q_proj.weight") for name in other):
                raise ValueError(
                    f"{meta} of {label} is in the format of Llama's and Mistral's own code, whose "
                    f"rows of queries and keys are in another order; --config DIR or ORG/NAME of a "
                    f"model like it in the format of transformers puts them right"
                )

    def replace_prefixes(self) -> None:
        """Replace beginnings of names, the longest that fit first, of them those that fit most."""
        done: set[tuple[str, str]] = set()  # none comes again, nor goes back
        while True:
            wanted = self.first.keys() - self.tensors.keys()
            extra = [name for name in self.tensors if name not in self.first]
            hits: dict[tuple[str, str], int] = {}
            for old, new in (x for pair in known_layouts().prefixes for x in (pair, pair[::-1])):
                if {(old, new), (new, old)} & done:
                    continue
                count = sum(n.startswith(old) and new + n[len(old) :] in wanted for n in extra)
                hits |= {(old, new): count} if count else {}
            if not hits:
                return
            old, new = best = max(hits, key=lambda pair: (len(pair[0]), hits[pair]))
            done.add(best)
            rivals = [p for p in hits if p[0] == old and hits[p] == hits[best]]
            if len(rivals) > 1:
                listed = " or ".join(f"'{beginning}…'" for _, beginning in rivals)
                raise ValueError(f"'{old}…' could mean {listed} of {self.labels[0]}")
            for name in [n for n in extra if n.startswith(old)]:
                rest = name[len(old) :]
                # Also names that rules change below, unless the first has no place for them.
                place = f"{new}{rest.partition('.')[0]}."
                if new + rest in wanted or any(n.startswith(place) for n in self.first):
                    self.put({new + rest: self.tensors[name]}, [name], "renamed")

    def apply_rule(
        self, rule: LayoutRule, own: Mapping[Key, Instance], wanted: Mapping[Key, Instance]
    ) -> None:
        """Convert every instance of a rule to the layout that the first model uses.

        A layer missing from the first model is converted to the layout of its other layers.
        """
        alike = {without_numbers(k): instance for k, instance in reversed(list(wanted.items()))}
        for key, members in own.items():
            goals = wanted.get(key) or alike.get(without_numbers(key))
            # Tensors that an earlier rule has taken are gone.
            instance = {k: v for k, v in members.items() if self.tensors.keys() >= {*v.values()}}
            if not goals or not instance:
                continue
            if goals.keys() == instance.keys():
                self.resplit(rule, key, instance, goals)
                continue
            _refuse_two(instance, "there are")
            _refuse_two(goals, f"{self.labels[0]} has")
            goal, layout = next(iter(goals)), next(iter(instance))
            if absent := missing(rule, layout, instance[layout], key):
                raise ValueError(
                    f"{_some(instance[layout])} is there, but {absent[0]} is not; of both, "
                    f"{self.labels[0]} has {_some(goals[goal])}"
                )
            want = (goal, self.shapes(rule, goals[goal]))
            self.convert(rule, key, (layout, instance[layout]), want)

    def resplit(self, rule: LayoutRule, key: Key, instance: Instance, wanted: Instance) -> None:
        """Split in other places what was one tensor: transformers splits into equal parts."""
        layout, members = next(iter(instance.items()))
        fused = next((each for each in rule.layouts if len(each.names) == 1), None)
        shapes = self.shapes(rule, wanted[layout])
        if not fused or fused.groups > 1 or shapes is None or len(members) != rule.size:
            return
        sources = [self.tensors[members[place, 0]] for place in range(rule.size)]
        own = [source.shape for source in sources]
        # Of two sizes, the tensors themselves are compared later.
        if own != list(shapes) and _joined_shape(own) == _joined_shape(shapes):
            joined = {(0, 0): concat(sources, 0, sources[0].name)}
            result = regroup(rule, key, (fused, joined), (layout, shapes))
            self.put(result, members.values(), "cut in other places")

    def shapes(self, rule: LayoutRule, members: Members) -> Shapes | None:
        """Return the shapes of a group of tensors that the first model has split and unstacked."""
        if len(members) != rule.size or rule.size == 1 or rule.stacks:
            return None
        return [self.first[members[place, 0]].shape for place in range(rule.size)]

    def convert(
        self,
        rule: LayoutRule,
        key: Key,
        have: tuple[Layout, Members],
        want: tuple[Layout, Shapes | None],
    ) -> None:
        """Replace the tensors of one instance by the same in another layout."""
        layout, members = have
        sources = {place: self.tensors[name] for place, name in members.items()}
        result = regroup(rule, key, (layout, sources), want)
        plain = len(result) == len(sources) and layout.transposed == want[0].transposed
        self.put(result, members.values(), "renamed" if plain else "regrouped")

    def put(self, new: Mapping[str, TensorSource], old: Iterable[str], verb: str) -> None:
        """Exchange tensors for others."""
        removed = list(old)
        for name in removed:
            del self.tensors[name]
        for name, source in new.items():
            if name in self.tensors:
                raise ValueError(
                    f"both {name} and {removed[0]} would be {name} of {self.labels[0]}"
                )
            self.tensors[name] = reshape(source, source.shape, name)
        self.counts[verb] = self.counts.get(verb, 0) + len(new)


def _refuse_two(instance: Instance, begin: str) -> None:
    if len(instance) > 1:
        first, second = [_some(members) for members in instance.values()][:2]
        raise ValueError(
            f"{begin} both {first} and {second}, two forms of the same; remove one of them"
        )


def _joined_shape(shapes: Shapes) -> object:
    """Return the shape of tensors one after the other; their shapes if they do not fit."""
    fit = all(shapes) and len({shape[1:] for shape in shapes}) == 1
    return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if fit else shapes


def _some(members: Members) -> str:
    return next(iter(members.values()))
