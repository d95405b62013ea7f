"""The search for the element of one rank: which bracket to count next, and what the counts imply.

`order_statistics` runs the passes; this module holds the search and the counting of one block.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from ..method import Scratch, Tensor

SORTED = 1 << 14  # number of elements up to which a tensor is simply sorted

MANY = 1 << 12  # candidates of a block from which it pays to check for few distinct values


@lru_cache(maxsize=4096)
def scalar(value: float, dtype: str) -> Tensor:
    """Return a number as a 0-D tensor: torch converts a Python number at every call, for 3 µs."""
    import torch

    return torch.tensor(value, dtype=getattr(torch, dtype))


def as_integers(values: Tensor) -> Tensor:
    """Return a view of float32 or float64 memory as integers of the same width."""
    import torch

    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)


@cache
def dtype_name(dtype: object) -> str:
    """Return the name of a torch dtype as Scratch.take expects it."""
    return str(dtype).removeprefix("torch.")


class Counts(NamedTuple):
    """Numbers of elements of one block below the bracket and inside it.

    `kept` holds the elements inside, or None if they are too many; `times`, if given, says how
    many elements each kept value stands for.
    """

    below: int
    inside: int
    kept: Tensor | None
    times: Tensor | None = None


class RankValue(NamedTuple):
    """The value of a rank; `upper` of its equals have this rank or a higher one.

    `equal` is the number of equal elements in each block.
    """

    value: float
    upper: int
    equal: list[int]


@dataclass
class Search:
    """The state of the search for one rank: its value is in [low, high].

    `before` elements are smaller than `low`, and `inside` elements are in [low, high]. `sample`
    holds the sampled values in [low, high], ascending.
    """

    rank: int
    count: int
    sample: Tensor
    dtype: str
    low: float = -math.inf
    high: float = math.inf
    before: int = 0
    points_only: bool = False
    result: RankValue | None = None

    def __post_init__(self) -> None:
        self.inside = self.count
        self.limit = max(SORTED, self.count // 48)  # candidates to keep in memory
        self.bracket, self.keep_all = self._guess()

    def _guess(self) -> tuple[tuple[float, float], bool]:
        """Return the next bracket to count, and whether to keep its elements however many."""
        import torch

        count = len(self.sample)
        if self.inside <= (SORTED // 4 if count else self.limit):
            return (self.low, self.high), True
        if not count:
            # Many elements are left and none of them was sampled: bisect the float numbers.
            return (_middle(self.low, self.high, self.dtype),) * 2, False
        fraction = min(1.0, (self.rank - self.before + 0.5) / self.inside)
        at = fraction * count
        error = math.sqrt(count * fraction * (1 - fraction)) + 1

        def between(errors: float) -> tuple[float, float]:
            first, last = math.floor(at - errors * error), math.ceil(at + errors * error)
            low = float(self.sample[first]) if first >= 0 else self.low
            return low, float(self.sample[last]) if last < count else self.high

        point = float(self.sample[min(count - 1, math.floor(at))])
        # Counting a single value is cheaper than keeping many: worth the risk of another pass.
        low, high = between(1.5)
        if low < high:
            low, high = between(3.0)
        scale = self.inside / count
        start, stop = self._span(low, high)
        # Equal elements are kept as one value with a count.
        distinct = len(torch.unique_consecutive(self.sample[start:stop]))
        if self.points_only or distinct * scale > self.limit:
            low = high = point
        return (low, high), False

    def _span(self, low: float, high: float) -> tuple[int, int]:
        """Return the range of indices of sampled values in [low, high]."""
        import torch

        first = torch.searchsorted(self.sample, low, side="left")
        return int(first), int(torch.searchsorted(self.sample, high, side="right"))

    def update(self, blocks: Sequence[Counts]) -> None:
        """Use the counts of a pass: set `result`, or narrow the interval."""
        low, high = self.bracket
        less = sum(block.below for block in blocks)
        inside = sum(block.inside for block in blocks)
        if self.rank < less:
            self._narrow(self.low, next_below(low, self.dtype), self.before, less - self.before)
        elif self.rank >= less + inside:
            if high == math.inf:  # only NaN is above
                self.result = RankValue(high, 0, [0] * len(blocks))
                return
            end = self.before + self.inside
            above = -next_below(-high, self.dtype)
            self._narrow(above, self.high, less + inside, end - less - inside)
        elif low == high:
            equal = [block.inside for block in blocks]
            self.result = RankValue(low, less + inside - self.rank, equal)
        elif all(block.kept is not None for block in blocks):
            self.result = select_rank(blocks, self.rank - less)
        else:
            self.points_only = True
            self._narrow(low, high, less, inside)

    def _narrow(self, low: float, high: float, before: int, inside: int) -> None:
        self.low, self.high, self.before, self.inside = low, high, before, inside
        first, last = self._span(low, high)
        self.sample = self.sample[first:last]
        self.bracket, self.keep_all = self._guess()


def select_rank(blocks: Sequence[Counts], rank: int) -> RankValue:
    """Return the element of a rank among the kept values of all blocks; NaN ranks highest."""
    import torch

    kept = [block.kept for block in blocks if block.kept is not None]
    values, times = torch.cat(kept), None
    if all(block.times is None for block in blocks):
        value = float(ascending(values)[rank])
    else:
        ordered, order = torch.sort(values)
        pairs = [(b.kept, b.times) for b in blocks if b.kept is not None]
        times = torch.cat(
            [torch.ones_like(k, dtype=torch.int64) if t is None else t for k, t in pairs]
        )
        value = float(ordered[torch.searchsorted(times[order].cumsum(0), rank + 1)])
    if math.isnan(value):
        return RankValue(math.inf, 0, [0] * len(blocks))
    # All blocks at once: blocks are many, with few values in each.
    upto, equal = values <= value, values == value
    counted = [flags.long() if times is None else flags * times for flags in (upto, equal)]
    sums = torch.nn.functional.pad(counted[1].cumsum(0), (1, 0))
    ends = torch.tensor([0, *accumulate(len(part) for part in kept)])
    return RankValue(value, int(counted[0].sum()) - rank, sums[ends].diff().tolist())


@cache
def has_numpy() -> bool:
    """Return whether torch can share memory with numpy, which sorts several times faster."""
    import torch

    try:
        torch.zeros(1).numpy()
    except (ImportError, RuntimeError):
        return False
    return True


def ascending(values: Tensor) -> Tensor:
    """Return a copy on the host, sorted along the last axis; NaN is last."""
    import torch

    if has_numpy():
        values = values.to("cpu", copy=True)
        values.numpy().sort(axis=-1)
        return values
    return torch.sort(values.cpu()).values


def _numpy_view(values: Tensor, scratch: Scratch) -> Any:
    """Return the memory of flat values as a numpy array; cached, since a new one takes 3 µs."""
    key = ("numpy", values.data_ptr(), values.numel(), values.dtype)
    return scratch.cached(key, values.numpy)


def count_bracket(values: Tensor, search: Search, scratch: Scratch) -> Counts:
    """Count flat values below and inside the bracket of a search."""
    import torch

    n = values.numel()
    (low, high), most = search.bracket, n if search.keep_all else n // 4
    flags = scratch.take("order", 2 * n, "bool")
    # Comparisons by numpy, and counts of their flags, take a quarter of the time.
    fast = values.device.type == "cpu" and has_numpy()
    if fast:
        import numpy

        array, all_flags = _numpy_view(values, scratch), _numpy_view(flags, scratch)
        under, until = all_flags[:n], all_flags[n:]
        below = int(numpy.count_nonzero(numpy.less(array, low, out=under)))
        inside = int(numpy.count_nonzero(numpy.less_equal(array, high, out=until))) - below
    else:
        less, upto = flags[:n], flags[n:]
        below = int(torch.lt(values, low, out=less).sum())
        inside = int(torch.le(values, high, out=upto).sum()) - below
    if low == high or inside > most:
        return Counts(below, inside, None)
    if not fast:
        return Counts(below, inside, values[less ^ upto].cpu())
    numpy.bitwise_xor(under, until, out=under)
    return Counts(below, inside, torch.from_numpy(array[numpy.flatnonzero(under)]))


def join_counts(parts: Sequence[Counts]) -> Counts:
    """Return the counts of a block from those of its parts."""
    import torch

    kept = [part.kept for part in parts if part.kept is not None]
    below, inside = sum(p.below for p in parts), sum(p.inside for p in parts)
    if len(kept) < len(parts):
        return Counts(below, inside, None)
    together = torch.cat(kept)
    if inside > MANY:
        values, times = torch.unique_consecutive(ascending(together), return_counts=True)
        if 4 * len(values) < inside:
            return Counts(below, inside, values, times)
    return Counts(below, inside, together)


def next_below(value: float, dtype: str) -> float:
    """Return the largest number of the dtype below `value`."""
    import torch

    exact = torch.tensor(value, dtype=getattr(torch, dtype))
    return float(torch.nextafter(exact, torch.full_like(exact, -math.inf)))


def _middle(low: float, high: float, dtype: str) -> float:
    """Return the number halfway between two numbers among all numbers of the dtype."""
    import torch

    middle = (_position(low) + _position(high)) // 2
    raw = middle if middle >= 0 else -middle | (1 << 63)
    (value,) = struct.unpack("<d", struct.pack("<Q", raw))
    return float(torch.tensor(value, dtype=getattr(torch, dtype)))


def _position(value: float) -> int:
    """Return the position of `value` among all float64 numbers, counted from 0."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits) if bits >= 0 else -(int(bits) & ((1 << 63) - 1))
