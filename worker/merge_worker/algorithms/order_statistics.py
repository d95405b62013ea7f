"""Exact order statistics of a streamed tensor: no sort of the whole, bounded memory, ties by index.

Elements are ordered by value and, where values are equal, by falling index: the upper side of a
rank takes the equal elements that come first. Small tensors are sorted. Of large ones a strided
sample brackets the value; one pass counts what lies below and keeps what lies inside; the value is
picked from that. A value that holds many elements (deltas of bfloat16 are full of those) is its own
bracket and needs counts only. A bracket that misses costs another pass, never exactness.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import TYPE_CHECKING

from ..method import Block, MergePass, StatisticsPass
from .rank_search import SORTED, Counts, Found, Search, add_up, ascending, held, next_below, pick

if TYPE_CHECKING:
    from torch import Tensor


Values = Callable[[Block], Sequence["Tensor"]]
"""`values(block)`: flat numbers of every series, in scratch; NaN counts as the largest."""

PART = 1 << 19
"""Elements of all models to work on at a time: few enough for a processor's caches, and enough for
the interpreter to take less time than the maths (2^18: a twentieth slower, 2^20: a tenth)."""

LEAST_PART = 1 << 13
"""Fewer, and the time goes into calls, for which lanes queue."""

DEVICE_PART = 1 << 22

STRIDE = 17
"""At least; odd, so that a sample does not follow the rows of a matrix."""

SAMPLES = 1 << 16
"""Also the square of what a bracket holds of it: fewer samples, more candidates."""

MANY_SAMPLES = 1 << 18
"""Of tensors so large that candidates would take too much memory."""

READS = 2
"""Passes that a search takes as a rule; a bracket that misses takes more."""


def parts(block: Block) -> Iterator[Block]:
    """A block in flat parts that stay in the cache together with their scratch.

    A block of rows has parts of whole rows.
    """
    size = _part_size(block)
    split = zip(*(_split(values, size) for values in block.tensors), strict=True)
    for start, here in zip(count(block.start, size), split):
        yield Block(list(here), start, block.scratch)


def parts_into(block: Block, out: Tensor) -> Iterator[tuple[Block, Tensor]]:
    """The parts of a block, each with its place in the result."""
    return zip(parts(block), _split(out, _part_size(block)), strict=True)


def _part_size(block: Block) -> int:
    first, sources = block.tensors[0], len(block.tensors)
    size = DEVICE_PART
    if first.device.type == "cpu":
        size = PART if sources < 3 else max(LEAST_PART, PART >> (sources - 2).bit_length())
    if first.ndim == 2:
        rows, row = first.shape
        size = row * -(-rows // max(1, -(-rows * row // size)))
    return size


def _split(values: Tensor, size: int) -> Sequence[Tensor]:
    """Flat parts. Lanes keep the views of their buffers, which so keep those of their parts."""
    if values.numel() <= size:
        return [values if values.ndim == 1 else values.reshape(-1)]
    found: tuple[int, Sequence[Tensor]] | None = getattr(values, "parts", None)
    if found is None or found[0] != size:
        split: Sequence[Tensor] = values.reshape(-1).split(size)  # type: ignore[no-untyped-call]
        found = size, split
        values.parts = found  # type: ignore[attr-defined]
    return found[1]


@dataclass
class Threshold:
    """The element of one rank. Larger ones, and the first of the equal ones, are its upper side."""

    value: float
    below: float  # the number next below it: `> below` means `>= value`
    block: int  # start of the block in which the equal elements of the upper side end
    left: int  # how many of that block's
    values: Values
    series: int

    def ties(self, block: Block) -> int:
        """How many leading elements of the block are on the upper side if equal to the value."""
        n = block.tensors[0].numel()
        if block.start != self.block or not self.left:
            return n if block.start < self.block else 0
        equal = (self.values(block)[self.series] == self.value).nonzero()
        return int(equal[self.left]) if self.left < len(equal) else n


Then = Callable[[list[list[Threshold]]], "StatisticsPass | MergePass"]


def order_statistics(
    values: Values, size: int, ranks: Sequence[Sequence[int]], then: Then, whole: bool = False
) -> StatisticsPass | MergePass:
    """Passes that find, for each series, the elements of ascending ranks in [0, size).

    `then` gets one threshold per series and rank and gives what follows. `whole` says that the
    values of a block must be computed together, not element by element. Scratch: two bytes per
    element beside what `values` takes.
    """
    if not any(ranks):
        return then([[] for _ in ranks])
    samples = SAMPLES if size < 1 << 26 else MANY_SAMPLES
    stride = 1 if size <= SORTED else max(STRIDE, size // samples | 1)
    return _Sample(values, size, ranks, then, whole, stride)


@dataclass
class _Sample(StatisticsPass):
    """Every `stride`-th value; all of a small tensor, which settles it."""

    values: Values
    count: int
    ranks: Sequence[Sequence[int]]
    then: Then
    whole: bool
    stride: int

    def collect(self, block: Block) -> tuple[int, list[Tensor]]:
        step = slice(-block.start % self.stride, None, self.stride)
        if not self.whole:
            here = [values.reshape(-1)[step] for values in block.tensors]
            block, step = Block(here, block.start, block.scratch), slice(None)
        # Scratch does not survive the block.
        return block.start, [values[step].clone().cpu() for values in self.values(block)]

    def next_pass(self, partials: Sequence[tuple[int, list[Tensor]]]) -> StatisticsPass | MergePass:
        import torch

        searches: list[list[Search]] = []
        for series, ranks in enumerate(self.ranks):
            searches.append([])
            if not ranks:
                continue
            blocks = [found[series] for _, found in partials]
            dtype = str(blocks[0].dtype).removeprefix("torch.")
            sample = ascending(torch.cat(blocks)).nan_to_num(math.inf, math.inf, -math.inf)
            for rank in ranks:
                search = Search(rank, self.count, sample, dtype)
                if self.stride == 1:
                    search.found = pick([Counts(0, len(b), b) for b in blocks], rank)
                searches[-1].append(search)
        return self.proceed(searches, [start for start, _ in partials])

    def proceed(
        self, searches: list[list[Search]], starts: list[int]
    ) -> StatisticsPass | MergePass:
        """Another pass while a value is missing."""
        if any(search.found is None for found in searches for search in found):
            return _Count(self, searches)
        return self.then(
            [
                [
                    self._threshold(series, search.found, search.dtype, starts)
                    for search in found
                    if search.found is not None
                ]
                for series, found in enumerate(searches)
            ]
        )

    def _threshold(self, series: int, found: Found, dtype: str, starts: list[int]) -> Threshold:
        before = [0, *accumulate(found.equal)]
        number = bisect_right(before, found.upper) - 1
        start = starts[number] if number < len(starts) else self.count
        below = next_below(found.value, dtype)
        left = found.upper - before[number]
        return Threshold(found.value, below, start, left, self.values, series)


@dataclass
class _Count(StatisticsPass):
    """Counts elements below and inside the bracket of every rank that is still sought."""

    root: _Sample
    searches: list[list[Search]]

    def __post_init__(self) -> None:
        self.active = [
            (series, search)
            for series, found in enumerate(self.searches)
            for search in found
            if search.found is None
        ]

    def collect(self, block: Block) -> tuple[int, list[Counts]]:
        counts: list[list[Counts]] = [[] for _ in self.active]
        for part in (block,) if self.root.whole else parts(block):
            values = self.root.values(part)
            for number, (series, search) in enumerate(self.active):
                counts[number].append(held(values[series], search, part.scratch))
        return block.start, [add_up(found) for found in counts]

    def next_pass(self, partials: Sequence[tuple[int, list[Counts]]]) -> StatisticsPass | MergePass:
        for number, (_, search) in enumerate(self.active):
            search.learn([found[number] for _, found in partials])
        return self.root.proceed(self.searches, [start for start, _ in partials])
