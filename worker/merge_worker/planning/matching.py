"""Tensors of the sources matched by name and shape, wherever their shards are.

The output has the names of the base (or first) source. Every difference between the sources has a
rule here and is either an error with the names, or a note that ends up in the manifest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..conversion.suggest import suggest_rules
from ..dtypes import Kind
from ..errors import InputError, UsageError
from ..messages import counted, first_names, printable
from ..structure.components import is_computed
from ..structure.layers import layer_of
from ..structure.selection import unused_patterns
from ..tensors.source import TensorSource, declared_dtype, stored_inputs
from .groups import Group
from .options import MatchOptions


@dataclass(frozen=True, slots=True)
class Match:
    """One output tensor: its name, its inputs, and the group that it belongs to."""

    name: str
    first: TensorSource  # of the reference source
    sources: tuple[tuple[int, TensorSource], ...]  # (number of the source, its tensor)
    merged: bool  # otherwise copied from the first
    group: Group


@dataclass(frozen=True)
class Matches:
    """All output tensors in the order of the first model's files, and notes for the user."""

    tensors: tuple[Match, ...]
    missing: tuple[str, ...]  # from at least one model; copied from the first
    surplus: tuple[str, ...]  # in other models only; dropped
    notes: tuple[str, ...]


def match_tensors(groups: Iterable[Group], labels: Sequence[str], options: MatchOptions) -> Matches:
    """Match the sources of every group; `labels` name the models in messages.

    Raises InputError with every name or shape that does not fit, with counts and the first names.
    """
    matcher = _Matcher(labels, options)
    for group in groups:
        matcher.add(group)
    return matcher.result()


Pair = tuple[str, str]  # labels of a source and of the source that it is compared to


@dataclass
class _Matcher:
    """Collects matches and faults over all groups."""

    labels: Sequence[str]
    options: MatchOptions
    tensors: list[Match] = field(default_factory=list)
    missing: dict[Pair, list[TensorSource]] = field(default_factory=dict)
    surplus: dict[Pair, list[TensorSource]] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)
    mixed_kinds: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)  # buffers that differ in shape or kind
    lost: dict[Pair, str] = field(default_factory=dict)  # see `_lost_layers`

    def add(self, group: Group) -> None:
        inputs = group.slice
        names = group.tensors[inputs.reference]
        label = self.labels[inputs.models[inputs.reference]]
        for number, tensors in enumerate(group.tensors):
            if number != inputs.reference:
                pair = (self.labels[inputs.models[number]], label)
                self.surplus.setdefault(pair, []).extend(
                    source
                    for name, source in tensors.items()
                    if name not in names and self.options.merges(name)
                )
                if names.keys() - tensors.keys() and (lost := self._lost_layers(group, tensors)):
                    self.lost.setdefault(pair, lost)
        for name, first in names.items():
            if self.options.merges(name):
                self._match(group, name, first, label)
            else:
                self.excluded.append(name)
                alone = ((inputs.reference, first),)
                self.tensors.append(Match(name, first, alone, False, group))

    def _lost_layers(self, group: Group, others: Collection[str]) -> str | None:
        """Describe layers of the reference of which a model has nothing.

        Prediction heads that are stored as last layers do not count, and a stack that is missing
        as a whole counts only if all are.
        """
        stacks: dict[str, dict[int, bool]] = {}
        for name, source in group.tensors[group.slice.reference].items():
            layer = layer_of(name) if self.options.merges(name) and _is_weight(source) else None
            depths = group.stack_depths
            if layer and (depths is None or layer.number < depths[layer.stack]):
                has = stacks.setdefault(layer.stack, {})
                has[layer.number] = has.get(layer.number, False) or name in others
        shared = {stack: has for stack, has in stacks.items() if any(has.values())}
        if stacks and not shared:
            return "no layer has the same tensors; are these models of one architecture?"
        lost = [f"{stack}{n}" for stack, has in shared.items() for n in has if not has[n]]
        return f"whole layers are missing ({first_names(lost)}); is it complete?" if lost else None

    def _match(self, group: Group, name: str, first: TensorSource, label: str) -> None:
        models = group.slice.models
        peers: list[tuple[int, TensorSource]] = []
        for number, tensors in enumerate(group.tensors):
            source = tensors.get(name)
            if source is None:
                pair = (self.labels[models[number]], label)
                self.missing.setdefault(pair, []).append(first)
                continue
            peers.append((number, source))
        if is_computed(name, first.shape) and len({(p.dtype.kind, p.shape) for _, p in peers}) > 1:
            # A float may have rounded the numbers of positions.
            whole = (p for _, p in peers if p.dtype.kind is not Kind.FLOAT)
            first = next((p for p in whole if p.shape == first.shape), first)
            peers = [(number, peer) for number, peer in peers if peer is first]
            self.computed.append(name)
        self._check_alike(name, first, label, [(self.labels[models[n]], p) for n, p in peers])
        kinds = {peer.dtype.kind for _, peer in peers}
        merged = len(peers) == len(group.tensors) and kinds == {Kind.FLOAT}
        self.tensors.append(Match(name, first, tuple(peers), merged, group))

    def _check_alike(
        self, name: str, first: TensorSource, label: str, peers: Iterable[tuple[str, TensorSource]]
    ) -> None:
        for other, peer in peers:
            if peer.shape != first.shape:
                self.shapes.append(
                    f"{printable(name)} is {list(first.shape)}{_made_of(first)} in {label} but "
                    f"{list(peer.shape)}{_made_of(peer)} in {other}"
                )
        kinds = [(other, p) for other, p in peers if p.dtype.kind is not first.dtype.kind]
        if kinds:
            other, peer = kinds[0]
            self.mixed_kinds.append(
                f"{printable(name)} is {first.dtype.torch_name} in {label} but "
                f"{peer.dtype.torch_name} in {other}"
            )

    def result(self) -> Matches:
        self._refuse_faults()
        missing, surplus = _names(self.missing), _names(self.surplus)
        return Matches(tuple(self.tensors), missing, surplus, tuple(self._notes(missing, surplus)))

    def _refuse_faults(self) -> None:
        patterns = (*self.options.include, *self.options.exclude)
        if unused := unused_patterns(patterns, [match.name for match in self.tensors]):
            raise UsageError("\n".join(f"include, exclude: {text}" for text in unused))
        faults: list[str] = []
        for texts, fact in (
            (self.shapes, "tensors differ in shape"),
            (self.mixed_kinds, "tensors differ in kind"),
        ):
            if texts:
                more = [f"and {len(texts) - 3} more"] if len(texts) > 3 else []
                faults.append("\n  ".join([f"{counted(len(texts), fact)}:", *texts[:3], *more]))
        ways_out = ["  these models do not share an architecture"] if faults else []
        unmatched = list(self._unmatched_faults())
        if faults or unmatched:
            raise InputError("\n".join([*faults, *unmatched, *(ways_out or self._ways_out())]))

    def _unmatched_faults(self) -> Iterable[str]:
        """Yield a fault for each pair of models with weights that only one of them has."""
        for (label, first), sources in self.missing.items():
            names = [source.name for source in _weights(sources)]
            if names and self.options.missing == "error":
                count = counted(len(names), "tensors of %s are missing") % first
                yield f"{label}: {count}: {first_names(names)}"
        for (label, first), sources in self.surplus.items():
            names = [source.name for source in _weights(sources)]
            if names and self.options.surplus == "error":
                count = counted(len(names), "tensors")
                yield f"{label}: {count} missing from {first}: {first_names(names)}"

    def _ways_out(self) -> Iterable[str]:
        """Yield what to do about unmatched tensors: options, or rules for `key_map`.

        No option is offered where whole layers would stay out of the merge.
        """
        rules, lost = dict[str, None](), dict[str, None]()
        options: dict[str, str] = {}
        for pair, sources in self.surplus.items():
            absent, extra = _weights(self.missing.get(pair, ())), _weights(sources)
            found = suggest_rules(absent, extra)
            if found:
                rules[found.lines] = None
            elif pair in self.lost:
                lost[f"  {pair[0]}: {self.lost[pair]}"] = None
            if self.options.missing == "error" and (found.absent if found else absent):
                options["--missing copy"] = "takes missing tensors from the base"
            if self.options.surplus == "error" and (found.extra if found else extra):
                options["--surplus drop"] = "omits extra ones"
        yield from lost
        if not lost and not rules:
            yield "  " + ", ".join(f"{option} {effect}" for option, effect in options.items())
        rest = f", with {' and '.join(options)} for the others" if options and not lost else ""
        for lines in rules:
            yield f"  if these are the same tensors, add to the recipe{rest}:\n{lines}"

    def _notes(self, missing: Sequence[str], surplus: Sequence[str]) -> Iterable[str]:
        for names, fact in (
            (self.excluded, "tensors that are not to be merged are copied"),
            (missing, "tensors missing from some models are copied"),
            (surplus, "tensors missing from the first model are dropped"),
            (self.computed, "buffers that models compute are copied"),
        ):
            if names:
                yield f"{counted(len(names), fact)}: {first_names(names)}"
        # One line when models store the same tensors with different precision.
        mixed = [
            m
            for m in self.tensors
            if m.merged and len({declared_dtype(i) for _, i in m.sources}) > 1
        ]
        if mixed:
            models = mixed[0].group.slice.models
            dtypes = ", ".join(
                f"{self.labels[models[number]]} {declared_dtype(source).torch_name}"
                for number, source in mixed[0].sources
            )
            yield f"{counted(len(mixed), 'tensors are stored with different dtypes')} ({dtypes})"


def _made_of(source: TensorSource) -> str:
    """Name the stored tensors that a regrouped one is made of, in parentheses."""
    stored = [info.name for info in stored_inputs(source)]
    return f" ({first_names(stored)})" if source.name not in stored else ""


def _weights(sources: Iterable[TensorSource]) -> list[TensorSource]:
    return [source for source in sources if _is_weight(source)]


def _is_weight(source: TensorSource) -> bool:
    """Return whether a tensor holds trained values, and not a buffer computed from the config."""
    return source.dtype.kind is Kind.FLOAT and not is_computed(source.name, source.shape)


def _names(sources: Mapping[Pair, Sequence[TensorSource]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.name for items in sources.values() for item in items))
