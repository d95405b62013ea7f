"""Which elements of a delta are kept: by magnitude, by chance, or by chance that grows with it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..method import Block, Granularity, Task
from .order_statistics import Threshold, Values
from .random_masks import Stream, least
from .rank_search import dtype_name, scalar
from .task_vectors import base_of, deltas_of

if TYPE_CHECKING:
    from torch import Tensor


Apply = Callable[[Block, "Tensor", "Tensor"], None]
"""`apply(part, delta, bits)` sets what is not kept of a part's flat delta (or its magnitude) to
zero; `bits` is the same memory as whole numbers."""


class Mask(ABC):
    """A selection with all statistics that it needs."""

    @abstractmethod
    def on(self, block: Block) -> Apply:
        """What to do with the parts of a block."""


class Sparsifier(ABC):
    """A selection as the recipe asks for it. KEEP_ALL and KEEP_NONE are the trivial ones."""

    granularity: Granularity = Granularity.ELEMENT

    def ranks(self, count: int) -> list[int]:
        """Ranks by magnitude, ascending, whose thresholds `mask` needs."""
        return []

    @abstractmethod
    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], again: bool) -> Mask:
        """`again` says that the mask is asked for in two passes."""


class _Everything(Sparsifier, Mask):
    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], again: bool) -> Mask:
        return self

    def on(self, block: Block) -> Apply:
        return lambda part, delta, bits: None


class _Nothing(_Everything):
    def on(self, block: Block) -> Apply:
        def clear(part: Block, delta: Tensor, bits: Tensor) -> None:
            delta.zero_()

        return clear


KEEP_ALL: Sparsifier = _Everything()
KEEP_NONE: Sparsifier = _Nothing()


def largest(density: float) -> Sparsifier:
    """The int(density · n) largest magnitudes, at least one."""
    if density >= 1:
        return KEEP_ALL
    return Trim(density) if density > 0 else KEEP_NONE


def inner(density: float, gamma: float) -> Sparsifier:
    """int(density · n) magnitudes below the int(gamma · n) largest; fewer of those if they must."""
    if not gamma >= 0:
        raise ValueError(f"gamma is {gamma:g}; it is the share of outliers to drop, 0 or more")
    if density >= 1:
        return KEEP_ALL
    return Trim(density, gamma) if density > 0 else KEEP_NONE


def chance(density: float) -> Sparsifier:
    """Each element with the probability `density`."""
    if density >= 1:
        return KEEP_ALL
    return Chance(density) if density > 0 else KEEP_NONE


def magnitudes(work: str, models: Sequence[int]) -> Values:
    """`values` for order statistics of |δ|; a series is a place in `models`."""

    def values(block: Block) -> Sequence[Tensor]:
        deltas = deltas_of(block, base_of(block, work), models)
        deltas.all.abs_()
        return deltas.each

    return values


@dataclass(frozen=True)
class Trim(Sparsifier):
    """A span of magnitudes; `gamma` is None where the largest are kept."""

    density: float
    gamma: float | None = None

    def span(self, count: int) -> tuple[int, int]:
        """Ranks [first, stop) to keep."""
        keep = int(self.density * count)
        if self.gamma is None:
            return count - max(1, keep), count
        first = max(0, count - keep - int(self.gamma * count))
        return first, first + keep

    def ranks(self, count: int) -> list[int]:
        first, stop = self.span(count)
        if first == stop:
            return []
        return [rank for rank in (first, stop) if 0 < rank < count]

    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], again: bool) -> Mask:
        count = math.prod(task.shape)
        first, stop = self.span(count)
        if first == stop:
            return _Nothing()
        found = iter(thresholds)
        lower = next(found) if first > 0 else None
        return _TrimMask(lower, next(found) if stop < count else None)


@dataclass(frozen=True)
class _TrimMask(Mask):
    lower: Threshold | None
    upper: Threshold | None

    def on(self, block: Block) -> Apply:
        lower, upper = self.lower, self.upper
        lower_edge = block.start + lower.ties(block) if lower else 0
        upper_edge = block.start + upper.ties(block) if upper else 0

        def trim(part: Block, delta: Tensor, bits: Tensor) -> None:
            if lower:
                shrink(delta, lower, lower_edge - part.start, delta)
            if upper:
                top = part.scratch.take("mask", delta.numel(), dtype_name(delta))
                shrink(delta, upper, upper_edge - part.start, top)
                delta.sub_(top)

        return trim


def shrink(values: Tensor, threshold: Threshold, lead: int, out: Tensor) -> None:
    """Keep the upper side: of the `lead` first elements those equal to the threshold as well."""
    import torch

    count = values.numel()
    lead = min(max(lead, 0), count)
    # Not a comparison and a product: one pass instead of two, and NaN stays visible.
    if lead == count:
        torch.hardshrink(values, threshold.below, out=out)
    elif not lead:
        torch.hardshrink(values, threshold.value, out=out)
    else:
        torch.hardshrink(values[:lead], threshold.below, out=out[:lead])
        torch.hardshrink(values[lead:], threshold.value, out=out[lead:])


@dataclass(frozen=True)
class Chance(Sparsifier):
    density: float

    def mask(self, task: Task, model: int, thresholds: Sequence[Threshold], again: bool) -> Mask:
        return _ChanceMask(Stream.of(task.seed, task.name, model), least(self.density))


@dataclass(frozen=True)
class _ChanceMask(Mask):
    stream: Stream
    bound: int

    def on(self, block: Block) -> Apply:
        return self.draw

    def draw(self, part: Block, delta: Tensor, bits: Tensor) -> None:
        import torch

        words = self.stream.words(part)
        torch.ge(words, scalar(self.bound, "int32"), out=words)
        # A product with 0 or 1 as whole numbers: products with bool are ten times slower.
        bits.mul_(words)
