"""Tensors of the sources matched by name and shape, wherever their shards are.

The output has the names of the base (or first) source. Every difference between the sources has a
rule here and is either an error with the names, or a note that ends up in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..conversion.suggest import suggest_rules
from ..dtypes import Kind
from ..errors import InputError, UsageError
from ..messages import counted, first_names, printable
from ..structure.components import is_computed
from ..structure.selection import unused_patterns
from ..tensors.source import TensorSource, declared_dtype
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
        for name, first in names.items():
            if self.options.merges(name):
                self._match(group, name, first, label)
            else:
                self.excluded.append(name)
                alone = ((inputs.reference, first),)
                self.tensors.append(Match(name, first, alone, False, group))

    def _match(self, group: Group, name: str, first: TensorSource, label: str) -> None:
        models = group.slice.models
        peers: list[tuple[int, TensorSource]] = []
        for number, tensors in enumerate(group.tensors):
            source = tensors.get(name)
            if source is None:
                pair = (self.labels[models[number]], label)
                self.missing.setdefault(pair, []).append(first)
                continue
            if source.shape != first.shape:
                self.shapes.append(
                    f"{name} is {list(first.shape)} in {label} but {list(source.shape)} "
                    f"in {self.labels[models[number]]}"
                )
            peers.append((number, source))
        kinds = {peer.dtype.kind for _, peer in peers}
        if len(kinds) > 1:
            other, peer = next((n, p) for n, p in peers if p.dtype.kind is not first.dtype.kind)
            self.mixed_kinds.append(
                f"{printable(name)} is {first.dtype.torch_name} in {label} but "
                f"{peer.dtype.torch_name} in {self.labels[models[other]]}"
            )
        merged = len(peers) == len(group.tensors) and kinds == {Kind.FLOAT}
        self.tensors.append(Match(name, first, tuple(peers), merged, group))

    def result(self) -> Matches:
        self._refuse_faults()
        missing, surplus = _names(self.missing), _names(self.surplus)
        return Matches(tuple(self.tensors), missing, surplus, tuple(self._notes(missing, surplus)))

    def _refuse_faults(self) -> None:
        patterns = (*self.options.include, *self.options.exclude)
        if unused := unused_patterns(patterns, [match.name for match in self.tensors]):
            raise UsageError("\n".join(f"include, exclude: {text}" for text in unused))
        faults = list(self._unmatched_faults())
        if faults:
            hint = "--missing copy takes missing tensors from the base, --surplus drop omits extra"
            raise InputError("\n".join([*faults, f"  {hint} ones", *self._suggested_rules()]))
        if self.shapes:
            shown = "\n  ".join(self.shapes[:3])
            faults.append(f"{counted(len(self.shapes), 'tensors differ in shape')}:\n  {shown}")
            if len(self.shapes) > 3:
                faults[-1] += f"\n  and {len(self.shapes) - 3} more"
        if self.mixed_kinds:
            shown = "\n  ".join(self.mixed_kinds[:3])
            faults.append(f"{counted(len(self.mixed_kinds), 'tensors differ in kind')}:\n  {shown}")
        if faults:
            raise InputError("\n".join([*faults, "  these models do not share an architecture"]))

    def _unmatched_faults(self) -> Iterable[str]:
        """Yield a fault for each pair of models with weights that only one of them has."""
        for (label, first), sources in self.missing.items():
            names = [source.name for source in sources if _is_weight(source)]
            if names and self.options.missing == "error":
                count = counted(len(names), "tensors of %s are missing") % first
                yield f"{label}: {count}: {first_names(names)}"
        for (label, first), sources in self.surplus.items():
            names = [source.name for source in sources if _is_weight(source)]
            if names and self.options.surplus == "error":
                count = counted(len(names), "tensors")
                yield f"{label}: {count} missing from {first}: {first_names(names)}"

    def _suggested_rules(self) -> Iterable[str]:
        """Yield key_map rules that would make the names match, where these are unambiguous."""
        for pair, sources in self.missing.items():
            if lines := suggest_rules(sources, self.surplus.get(pair, [])):
                yield f"  or, if these are the same tensors, add to the recipe:\n{lines}"

    def _notes(self, missing: Sequence[str], surplus: Sequence[str]) -> Iterable[str]:
        for names, fact in (
            (self.excluded, "tensors that are not to be merged are copied"),
            (missing, "tensors missing from some models are copied"),
            (surplus, "tensors missing from the first model are dropped"),
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


def _is_weight(source: TensorSource) -> bool:
    """Return whether a tensor holds trained values, and not a buffer computed from the config."""
    return source.dtype.kind is Kind.FLOAT and not is_computed(source.name, source.shape)


def _names(sources: Mapping[Pair, Sequence[TensorSource]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.name for items in sources.values() for item in items))
