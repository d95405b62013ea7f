"""Which tensors of the sources belong together: by name and shape, wherever their shards are.

The output has the names of the base (or first) source. Every difference between the sources has a
rule here and is either an error with the names, or a note that ends up in the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..checkpoint.folder import Checkpoint
from ..conversion.suggest import suggest_rules
from ..dtypes import DType, Kind
from ..errors import InputError, UsageError
from ..messages import counted, first_names, printable
from ..structure.components import is_computed
from ..structure.selection import unused_patterns
from ..tensors.source import TensorSource
from .groups import Group
from .options import MatchOptions


@dataclass(frozen=True, slots=True)
class Match:
    """One output tensor: its name, what it is made of, and the group that it belongs to."""

    name: str
    first: TensorSource  # of the source whose names count
    sources: tuple[tuple[int, TensorSource], ...]  # (number of the source, its tensor)
    merged: bool  # else copied from the first
    group: Group


@dataclass(frozen=True)
class Matches:
    """All output tensors in the order of the first model's files, and what was noticed."""

    tensors: tuple[Match, ...]
    missing: tuple[str, ...]  # not in every model; copied from the first
    surplus: tuple[str, ...]  # not in the first model; left out
    notes: tuple[str, ...]


def match(
    groups: Iterable[Group],
    models: Sequence[Checkpoint],
    labels: Sequence[str],
    rules: MatchOptions,
) -> Matches:
    """Match the sources of every group; `labels` name the models in messages.

    InputError lists every name or shape that does not fit, with counts and the first names.
    """
    matcher = _Matcher(models, labels, rules)
    for group in groups:
        matcher.add(group)
    return matcher.result()


Pair = tuple[str, str]  # labels of a source and of the source that it is compared to


@dataclass
class _Matcher:
    """Collects matches and faults over all groups."""

    models: Sequence[Checkpoint]
    labels: Sequence[str]
    rules: MatchOptions
    tensors: list[Match] = field(default_factory=list)
    missing: dict[Pair, list[TensorSource]] = field(default_factory=dict)
    more: dict[Pair, list[TensorSource]] = field(default_factory=dict)
    shapes: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)

    def add(self, group: Group) -> None:
        part = group.slice
        names = group.tensors[part.reference]
        label = self.labels[part.models[part.reference]]
        for number, tensors in enumerate(group.tensors):
            if number == part.reference:
                continue
            pair = (self.labels[part.models[number]], label)
            more = [
                info
                for name, info in tensors.items()
                if name not in names and self.rules.merges(name)
            ]
            self.more.setdefault(pair, []).extend(more)
        for name, first in names.items():
            if self.rules.merges(name):
                self._tensor(group, name, first, label)
            else:
                self.apart.append(name)
                alone = ((part.reference, first),)
                self.tensors.append(Match(name, first, alone, False, group))

    def _tensor(self, group: Group, name: str, first: TensorSource, label: str) -> None:
        part = group.slice
        peers: list[tuple[int, TensorSource]] = []
        for number, tensors in enumerate(group.tensors):
            info = tensors.get(name)
            if info is None:
                pair = (self.labels[part.models[number]], label)
                self.missing.setdefault(pair, []).append(first)
                continue
            if info.shape != first.shape:
                self.shapes.append(
                    f"{name} is {list(first.shape)} in {label} but {list(info.shape)} "
                    f"in {self.labels[part.models[number]]}"
                )
            peers.append((number, info))
        kinds = {peer.dtype.kind for _, peer in peers}
        if len(kinds) > 1:
            other = next(n for n, peer in peers if peer.dtype.kind is not first.dtype.kind)
            kind = next(peer.dtype.torch_name for n, peer in peers if n == other)
            self.mixed.append(
                f"{printable(name)} is {first.dtype.torch_name} in {label} but {kind} "
                f"in {self.labels[part.models[other]]}"
            )
        whole = len(peers) == len(group.tensors) and kinds == {Kind.FLOAT}
        self.tensors.append(Match(name, first, tuple(peers), whole, group))

    def result(self) -> Matches:
        patterns = (*self.rules.include, *self.rules.exclude)
        if wrong := unused_patterns(patterns, [match.name for match in self.tensors]):
            raise UsageError("\n".join(f"include, exclude: {text}" for text in wrong))
        faults = list(self._lone_names())
        if faults:
            hint = "--missing copy takes missing tensors from the base, --surplus drop omits extra"
            raise InputError("\n".join([*faults, f"  {hint} ones", *self._rules_to_add()]))
        if self.shapes:
            shown = "\n  ".join(self.shapes[:3])
            faults.append(f"{counted(len(self.shapes), 'tensors differ in shape')}:\n  {shown}")
            if len(self.shapes) > 3:
                faults[-1] += f"\n  and {len(self.shapes) - 3} more"
        if self.mixed:
            shown = "\n  ".join(self.mixed[:3])
            faults.append(f"{counted(len(self.mixed), 'tensors differ in kind')}:\n  {shown}")
        if faults:
            raise InputError("\n".join([*faults, "  these models are not of one family"]))
        missing = _names(self.missing)
        surplus = _names(self.more)
        notes = list(self._notes(missing, surplus))
        return Matches(tuple(self.tensors), missing, surplus, tuple(notes))

    def _lone_names(self) -> Iterable[str]:
        """Faults: names that not every source has, where leaving them alone would be wrong."""
        for (label, first), infos in self.missing.items():
            heavy = [info.name for info in infos if _is_weight(info)]
            if heavy and self.rules.missing == "error":
                what = counted(len(heavy), "tensors of %s are missing") % first
                yield f"{label}: {what}: {first_names(heavy)}"
        for (label, first), infos in self.more.items():
            extra = [info.name for info in infos if _is_weight(info)]
            if extra and self.rules.surplus == "error":
                yield (
                    f"{label}: {counted(len(extra), 'tensors')} that {first} has not: "
                    f"{first_names(extra)}"
                )

    def _rules_to_add(self) -> Iterable[str]:
        """What would make the names match, where that is clear."""
        for pair, infos in self.missing.items():
            if lines := suggest_rules(infos, self.more.get(pair, [])):
                yield f"  or, if these are the same tensors, add to the recipe:\n{lines}"

    def _notes(self, missing: Sequence[str], surplus: Sequence[str]) -> Iterable[str]:
        if self.apart:
            yield (
                f"{counted(len(self.apart), 'tensors that are not to be merged are copied')}: "
                f"{first_names(self.apart)}"
            )
        if missing:
            yield (
                f"{counted(len(missing), 'tensors that not every model has are copied')}: "
                f"{first_names(missing)}"
            )
        if surplus:
            yield (
                f"{counted(len(surplus), 'tensors that the first model has not are left out')}: "
                f"{first_names(surplus)}"
            )
        # One line when models store the same tensors with different precision.
        mixed = [m for m in self.tensors if m.merged and len({_dtype(i) for _, i in m.sources}) > 1]
        if mixed:
            models = mixed[0].group.slice.models
            found = ", ".join(
                f"{self.labels[models[i]]} {_dtype(info).torch_name}"
                for i, info in mixed[0].sources
            )
            yield f"{counted(len(mixed), 'tensors are stored with different dtypes')} ({found})"


def _is_weight(source: TensorSource) -> bool:
    """Whether a tensor says something about the model that its config does not."""
    return source.dtype.kind is Kind.FLOAT and not is_computed(source.name, source.shape)


def _dtype(source: TensorSource) -> DType:
    """What a source stands for, whatever it is computed in."""
    return source.declared_dtype or source.dtype


def _names(found: dict[Pair, list[TensorSource]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(info.name for infos in found.values() for info in infos))
