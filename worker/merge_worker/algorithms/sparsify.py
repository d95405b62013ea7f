"""Sparsification of task vectors: by magnitude (trim), or at random (drop).

Pruning at random with a probability that depends on the magnitude is in `magprune`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..method import Block, Granularity, Task, Tensor
from .order_statistics import Threshold
from .random_masks import RandomStream, keep_bound, stream_bytes
from .rank_search import dtype_name, scalar

ApplyMask = Callable[[Block, Tensor, Tensor], None]
"""`apply(part, vector, bits)` sets the dropped elements of a part's flat task vector (or of its
magnitudes) to zero; `bits` is the same memory as integers."""


class Mask:
    """The elements of one model's task vector to keep, with all statistics that this takes.

    A class derived from it redefines `apply`, or `on` if masking takes facts about the block.
    """

    def on(self, block: Block) -> ApplyMask:
        """Return the function that masks the parts of a block."""
        return self.apply

    def apply(self, part: Block, vector: Tensor, bits: Tensor) -> None:
        """Keep everything."""


class Sparsifier(ABC):
    """A rule, given by parameters alone, for which elements of a task vector to keep.

    KEEP_ALL and KEEP_NONE are the trivial ones.
    """

    granularity: Granularity = Granularity.ELEMENT

    def ranks(self, count: int) -> list[int]:
        """Return the ascending ranks by magnitude, of `count`, whose thresholds `mask` needs."""
        return []

    @abstractmethod
    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], twice: bool) -> Mask:
        """Return the mask of a model; `twice` says that two passes will apply it."""

    def mask_bytes(self, task: Task, block: int, twice: bool) -> int:
        """Return the bytes that the mask of a model holds, and those that making it takes."""
        return 0


class _KeepAll(Sparsifier, Mask):
    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], twice: bool) -> Mask:
        return self


class _KeepNone(_KeepAll):
    def apply(self, part: Block, vector: Tensor, bits: Tensor) -> None:
        vector.zero_()


KEEP_ALL: Sparsifier = _KeepAll()
KEEP_NONE: Sparsifier = _KeepNone()


def trim(density: float, gamma: float | None = None) -> Sparsifier:
    """Keep the int(density · n) elements of largest magnitude, at least one (TIES).

    With `gamma`: keep those below the int(gamma · n) largest (Model Breadcrumbs). If gamma > 1 −
    density, fewer of the largest are dropped.
    """
    if gamma is not None and not gamma >= 0:
        raise ValueError(f"gamma must be 0 or more (the share of outliers to drop), got {gamma:g}")
    if density >= 1:
        return KEEP_ALL
    return Trim(density, gamma) if density > 0 else KEEP_NONE


def drop_at_random(density: float) -> Sparsifier:
    """Keep each element with probability `density` (DARE)."""
    if density >= 1:
        return KEEP_ALL
    return RandomDrop(density) if density > 0 else KEEP_NONE


@dataclass(frozen=True)
class Trim(Sparsifier):
    """The sparsifier that keeps a range of magnitudes; without `gamma`, the largest."""

    density: float
    gamma: float | None = None

    def span(self, count: int) -> tuple[int, int]:
        """Return the ranks [first, stop) to keep of `count` elements."""
        keep = int(self.density * count)
        if self.gamma is None:
            return count - max(1, keep), count
        first = max(0, count - keep - int(min(1.0, self.gamma) * count))
        return first, first + keep

    def ranks(self, count: int) -> list[int]:
        first, stop = self.span(count)
        return [rank for rank in (first, stop) if 0 < rank < count and first < stop]

    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], twice: bool) -> Mask:
        count = math.prod(task.shape)
        first, stop = self.span(count)
        if first == stop:
            return _KeepNone()
        remaining = iter(thresholds)
        lower = next(remaining) if first > 0 else None
        return _TrimMask(lower, next(remaining) if stop < count else None)


@dataclass(frozen=True)
class _TrimMask(Mask):
    lower: Threshold | None
    upper: Threshold | None

    def on(self, block: Block) -> ApplyMask:
        lower, upper = self.lower, self.upper
        lower_edge = block.start + lower.leading_ties(block) if lower else 0
        upper_edge = block.start + upper.leading_ties(block) if upper else 0

        def apply(part: Block, vector: Tensor, bits: Tensor) -> None:
            if lower:
                zero_below(vector, lower, lower_edge - part.start, vector)
            if upper:
                outliers = part.scratch.take("mask", vector.numel(), dtype_name(vector.dtype))
                zero_below(vector, upper, upper_edge - part.start, outliers)
                vector.sub_(outliers)

        return apply


def zero_below(values: Tensor, threshold: Threshold, lead: int, out: Tensor) -> None:
    """Write to `out` the values of magnitude above the threshold, and zero for all others.

    Of elements equal to the threshold, those among the first `lead` are kept.
    """
    import torch

    count = values.numel()
    lead = min(max(lead, 0), count)
    # One pass, where a comparison and a product take two; and NaN stays visible.
    if lead == count:
        torch.hardshrink(values, threshold.below, out=out)
    elif not lead:
        torch.hardshrink(values, threshold.value, out=out)
    else:
        torch.hardshrink(values[:lead], threshold.below, out=out[:lead])
        torch.hardshrink(values[lead:], threshold.value, out=out[lead:])


@dataclass(frozen=True)
class RandomDrop(Sparsifier):
    """The sparsifier that keeps each element with probability `density`."""

    density: float

    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], twice: bool) -> Mask:
        stream = RandomStream.of(task.seed, task.name, model)
        return _RandomMask(stream, keep_bound(self.density))

    def mask_bytes(self, task: Task, block: int, twice: bool) -> int:
        return stream_bytes(math.prod(task.shape))


@dataclass(frozen=True)
class _RandomMask(Mask):
    stream: RandomStream
    bound: int

    def apply(self, part: Block, vector: Tensor, bits: Tensor) -> None:
        import torch

        words = self.stream.words(part)
        torch.ge(words, scalar(self.bound, "int32"), out=words)
        # A product with integers 0 and 1: products with bool are ten times slower.
        bits.mul_(words)
