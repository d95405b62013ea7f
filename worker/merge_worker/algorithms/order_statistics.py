"""Exact order statistics of a streamed tensor in bounded memory; ties are broken by index.

Elements are ordered by value and, where values are equal, by descending index: the upper side of
a rank contains the equal elements that come first. Small tensors are sorted. For large ones a
strided sample brackets the value; one pass counts the elements below the bracket and keeps those
inside; the value is selected from these. A value that many elements share (frequent in deltas of
bfloat16) is its own bracket and needs counts only. A bracket that misses costs another pass, never
exactness.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count

from ..method import Block, MergePass, StatisticsPass, Tensor
from .rank_search import (
    SORTED,
    Counts,
    Search,
    ascending,
    count_bracket,
    dtype_name,
    join_counts,
    next_below,
    select_rank,
)

Values = Callable[[Block], Sequence[Tensor]]
"""`values(block)` returns the flat values of every series, in scratch; NaN ranks highest."""

PART = 1 << 19
"""Elements, over all sources, processed at a time: few enough for a processor's caches, enough to
hide the interpreter's time (2^18 is a twentieth slower, 2^20 a tenth)."""

LEAST_PART = 1 << 13
"""Lower bound of a part: below it the time goes into calls, for which lanes queue."""

DEVICE_PART = 1 << 22  # elements per part on an accelerator

STRIDE = 17  # smallest stride of a sample; odd, so that samples do not follow the rows of a matrix

SAMPLES = 1 << 16
"""Elements sampled. Fewer samples give a wider bracket, hence more candidates to keep."""

MANY_SAMPLES = 1 << 18
"""Elements sampled from tensors so large that their candidates would take too much memory."""

READS = 2  # passes that a search usually takes; a bracket that misses takes more


def parts(block: Block) -> Iterator[Block]:
    """Yield a block in flat parts that stay in the cache together with their scratch memory.

    A block of rows is divided into parts of whole rows.
    """
    size = _part_size(block)
    split = zip(*(_split(values, size, block) for values in block.tensors), strict=True)
    for start, tensors in zip(count(block.start, size), split):
        yield Block(list(tensors), start, block.scratch)


def parts_into(block: Block, out: Tensor) -> Iterator[tuple[Block, Tensor]]:
    """Yield the parts of a block, each with its part of the result."""
    return zip(parts(block), _split(out, _part_size(block), block), strict=True)


def _part_size(block: Block) -> int:
    first, sources = block.tensors[0], len(block.tensors)
    size = DEVICE_PART
    if first.device.type == "cpu":
        size = PART if sources < 3 else max(LEAST_PART, PART >> (sources - 2).bit_length())
    if first.ndim == 2:
        rows, row = first.shape
        size = row * -(-rows // max(1, -(-rows * row // size)))
    return size


def _split(values: Tensor, size: int, block: Block) -> Sequence[Tensor]:
    """Return flat views of `size` elements; cached, since the lanes reuse their buffers."""
    if values.numel() <= size:
        return [values if values.ndim == 1 else values.reshape(-1)]
    key = ("parts", values.data_ptr(), values.numel(), values.dtype, size)
    return block.scratch.cached(key, lambda: values.reshape(-1).split(size))  # type: ignore[no-untyped-call]


@dataclass
class Threshold:
    """The element of one rank; larger elements, and the first of the equal ones, are above it.

    `below` is the next smaller number, so that `x > below` means `x >= value`. Equal elements are
    above up to and including `left` of them in the block that starts at `block`.
    """

    value: float
    below: float
    block: int
    left: int
    values: Values
    series: int

    def leading_ties(self, block: Block) -> int:
        """Return how many leading elements of the block are above if equal to the value."""
        n = block.tensors[0].numel()
        if block.start != self.block or not self.left:
            return n if block.start < self.block else 0
        equal = (self.values(block)[self.series] == self.value).nonzero()
        return int(equal[self.left]) if self.left < len(equal) else n


Then = Callable[[list[list[Threshold]]], "StatisticsPass | MergePass"]


def order_statistics(
    values: Values, size: int, ranks: Sequence[Sequence[int]], then: Then, whole: bool = False
) -> StatisticsPass | MergePass:
    """Return passes that find the elements of the given ascending ranks, in [0, size), per series.

    `then` receives one threshold per series and rank, and returns the pass that follows. With
    `whole`, the values of a block are computed together, not part by part. Scratch: two bytes per
    element besides what `values` takes.
    """
    if not any(ranks):
        return then([[] for _ in ranks])
    return _SamplePass(values, size, ranks, then, whole, _stride(size))


def _stride(size: int) -> int:
    samples = SAMPLES if size < 1 << 26 else MANY_SAMPLES
    return 1 if size <= SORTED else max(STRIDE, size // samples | 1)


def held_bytes(size: int, block: int, ranks: Sequence[int], work: str) -> int:
    """Return the bytes that `order_statistics` holds, given the number of ranks of each series."""
    if not ranks:
        return 0
    each = 8 if work == "float64" else 4
    samples = size // _stride(size) + 1
    # The candidates inside a bracket of three standard errors on both sides, and a quarter more.
    kept = 0 if samples >= size else min(size, int((4 * math.sqrt(samples) + 8) * size / samples))
    sampling = each * samples * (2 * len(ranks) + 3)
    # Selection sorts those of one rank, and counts equal ones, in integers of 64 bits.
    counting = each * samples * len(ranks) + each * kept * sum(ranks) + (2 * each + 40) * kept
    ties = 9 * block  # a flag and an index for each
    return max(sampling, counting) + ties


@dataclass
class _SamplePass(StatisticsPass):
    """The pass that takes every `stride`-th value; all values of a small tensor."""

    values: Values
    count: int
    ranks: Sequence[Sequence[int]]
    then: Then
    whole: bool
    stride: int

    def collect(self, block: Block) -> tuple[int, list[Tensor]]:
        step = slice(-block.start % self.stride, None, self.stride)
        if not self.whole:
            sampled = [values.reshape(-1)[step] for values in block.tensors]
            block, step = Block(sampled, block.start, block.scratch), slice(None)
        # Cloned, since scratch memory does not survive the block.
        return block.start, [values[step].clone().cpu() for values in self.values(block)]

    def next_pass(self, partials: Sequence[tuple[int, list[Tensor]]]) -> StatisticsPass | MergePass:
        import torch

        searches: list[list[Search]] = []
        for series, ranks in enumerate(self.ranks):
            blocks = [values[series] for _, values in partials]
            dtype = dtype_name(blocks[0].dtype)
            sample = ascending(torch.cat(blocks)).nan_to_num(math.inf, math.inf, -math.inf)
            searches.append([Search(rank, self.count, sample, dtype) for rank in ranks])
            if self.stride == 1:
                for search in searches[-1]:
                    search.result = select_rank([Counts(0, len(b), b) for b in blocks], search.rank)
        return self.proceed(searches, [start for start, _ in partials])

    def proceed(
        self, searches: list[list[Search]], starts: list[int]
    ) -> StatisticsPass | MergePass:
        """Return another counting pass while a value is missing, else what follows."""
        active = [(n, s) for n, series in enumerate(searches) for s in series if s.result is None]
        if active:
            return _CountPass(self, searches, active)
        thresholds = [
            [self._threshold(n, search, starts) for search in series]
            for n, series in enumerate(searches)
        ]
        return self.then(thresholds)

    def _threshold(self, series: int, search: Search, starts: list[int]) -> Threshold:
        assert search.result is not None
        value, upper, equal = search.result
        before = [0, *accumulate(equal)]
        number = bisect_right(before, upper) - 1
        block = starts[number] if number < len(starts) else self.count
        below = next_below(value, search.dtype)
        return Threshold(value, below, block, upper - before[number], self.values, series)


@dataclass
class _CountPass(StatisticsPass):
    """The pass that counts elements below and inside the brackets of all unfinished searches."""

    root: _SamplePass
    searches: list[list[Search]]
    active: list[tuple[int, Search]]

    def collect(self, block: Block) -> tuple[int, list[Counts]]:
        counts: list[list[Counts]] = [[] for _ in self.active]
        for part in (block,) if self.root.whole else parts(block):
            values = self.root.values(part)
            for number, (series, search) in enumerate(self.active):
                counts[number].append(count_bracket(values[series], search, part.scratch))
        return block.start, [join_counts(of_parts) for of_parts in counts]

    def next_pass(self, partials: Sequence[tuple[int, list[Counts]]]) -> StatisticsPass | MergePass:
        for number, (_, search) in enumerate(self.active):
            search.update([counts[number] for _, counts in partials])
        return self.root.proceed(self.searches, [start for start, _ in partials])
