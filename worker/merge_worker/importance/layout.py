"""Values for tensors as a class has them in memory, brought to the tensors of a checkpoint.

Classes of transformers stack experts and split fused projections; files have both otherwise. The
sources of the tensors in memory say how they are read from the file, so reading places instead of
values shows where each element belongs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors.row_gather import GatheredRows
from ..tensors.source import StoredTensor, TensorSource
from ..tensors.views import ConcatTensor, SlicedTensor, TransposedTensor

REARRANGED = (SlicedTensor, ConcatTensor, TransposedTensor, GatheredRows)
AT_ONCE = 1 << 21
"""Elements whose places are known at a time; a place takes 8 bytes."""


class Run(NamedTuple):
    """Elements of a tensor in memory that follow each other on disk as well.

    `[first, stop)` of the tensor in memory are elements from `start` on of the tensor `name`.
    """

    first: int
    stop: int
    name: str
    start: int


@dataclass(frozen=True)
class _Scattered:
    """Elements of a tensor in memory with their places in the tensor `name` on disk."""

    first: int
    elements: Tensor  # numbers from `first` on
    name: str
    places: Tensor


class DiskLayout:
    """Finds the tensors on disk for the tensors in memory.

    `disk` and `memory` are the same checkpoint, before and after `as_in_memory`.
    """

    def __init__(
        self, disk: Mapping[str, TensorSource], memory: Mapping[str, TensorSource]
    ) -> None:
        self.disk, self.memory = disk, memory
        self._names = list(disk)
        self._starts = list(accumulate((disk[name].count for name in disk), initial=0))
        self._stored: dict[str, list[tuple[int, int, int]]] = {}
        self._derived: dict[object, int] = {}
        for number, source in enumerate(disk.values()):
            if isinstance(source, StoredTensor):
                place = source.offset, source.offset + source.nbytes, number
                self._stored.setdefault(source.file, []).append(place)
            else:
                self._derived[_key(source)] = number
        for places in self._stored.values():
            places.sort()

    def names(self, name: str) -> list[str]:
        """Return the names on disk of what a tensor in memory is made of."""
        return list(dict.fromkeys(self._names[n] for n in self._leaves(self.memory[name])))

    def shape(self, disk_name: str) -> tuple[int, ...]:
        return self.disk[disk_name].shape

    def write(
        self,
        name: str,
        values: Tensor,
        put: Callable[[str, int, Tensor], None],
        get: Callable[[str, int, int], Tensor],
        start: int = 0,
    ) -> None:
        """Write values of a tensor in memory, flat, from element `start` on.

        `put(disk name, first element, values)` and `get(disk name, first, stop)` write and read
        runs of elements; elements between scattered ones are read and written back.
        """
        flat = values.reshape(-1)
        for part in self._parts(self.memory[name], start, start + flat.numel()):
            if isinstance(part, Run):
                put(part.name, part.start, flat[part.first - start : part.stop - start])
                continue
            low, high = int(part.places.min()), int(part.places.max()) + 1
            block = get(part.name, low, high)
            block[part.places - low] = flat[part.elements + (part.first - start)].to(block.dtype)
            put(part.name, low, block)

    def _parts(self, source: TensorSource, start: int, stop: int) -> Iterator[Run | _Scattered]:
        leaf = self._leaf(source)
        if leaf is not None:
            number, inside = leaf
            yield Run(start, stop, self._names[number], inside + start)
            return
        for first in range(start, stop, AT_ONCE):
            places = _Places(self).read(source, first, min(stop, first + AT_ONCE), "")
            breaks = (places.diff() != 1).nonzero().view(-1) + 1
            if len(breaks) <= 64:
                yield from self._runs(places, first, breaks.tolist())
            else:
                yield from self._scattered(places, first)

    def _runs(self, places: Tensor, first: int, breaks: list[int]) -> Iterator[Run]:
        for begin, end in pairwise([0, *breaks, len(places)]):
            place, left = int(places[begin]), end - begin
            while left:  # neighbors on disk may be two tensors
                number = bisect_right(self._starts, place) - 1
                taken = min(left, self._starts[number + 1] - place)
                at = first + end - left
                yield Run(at, at + taken, self._names[number], place - self._starts[number])
                place, left = place + taken, left - taken

    def _scattered(self, places: Tensor, first: int) -> Iterator[_Scattered]:
        owners = torch.bucketize(places, torch.tensor(self._starts), right=True) - 1
        for number in sorted(set(owners.tolist())):
            elements = (owners == number).nonzero().view(-1)
            inside = places[elements] - self._starts[number]
            yield _Scattered(first, elements, self._names[number], inside)

    def _leaf(self, source: TensorSource) -> tuple[int, int] | None:
        """Return the number of the tensor on disk that holds a source as one run, and its begin."""
        if isinstance(source, StoredTensor):
            places = self._stored.get(source.file, [])
            at = bisect_right(places, (source.offset, 1 << 62, 1 << 62)) - 1
            begin, end, number = places[at]
            if not begin <= source.offset <= source.offset + source.nbytes <= max(end, begin):
                raise ValueError(f"{source.name}: not part of a tensor of its checkpoint")
            return number, (source.offset - begin) // max(1, source.dtype.bytes)
        number_found = self._derived.get(_key(source))
        if number_found is not None:
            return number_found, 0
        if isinstance(source, REARRANGED):
            return None
        raise ValueError(f"{source.name} has other elements than the tensors of its checkpoint")

    def _leaves(self, source: TensorSource) -> Iterator[int]:
        leaf = self._leaf(source)
        if leaf is not None:
            yield leaf[0]
            return
        for inner in source.inputs:  # type: ignore[union-attr]  # derived
            yield from self._leaves(inner)


def _key(source: TensorSource) -> object:
    """Return what a derived source is, whatever its name and shape."""
    if isinstance(source, StoredTensor):
        return source.file, source.offset, source.nbytes
    return source.kind, tuple(map(_key, source.inputs)), repr(source.fingerprint()), source.count


class _Places:
    """A reader that gives each element its place among all elements of a checkpoint."""

    def __init__(self, layout: DiskLayout) -> None:
        self.layout = layout

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        leaf = self.layout._leaf(source)
        if leaf is not None:
            begin = self.layout._starts[leaf[0]] + leaf[1]
            return torch.arange(begin + start, begin + stop)
        out = torch.empty(stop - start, dtype=torch.int64)
        source.read_into(self, start, stop, out, slot)  # type: ignore[union-attr]  # derived
        return out

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        return torch.empty(count, dtype=torch.int64)
