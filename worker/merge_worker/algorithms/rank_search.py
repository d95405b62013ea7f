"""Search for the element of one rank: which bracket to count next, and what the counts tell."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Scratch


SORTED = 1 << 14
"""Up to this many elements are simply sorted."""

MANY = 1 << 12
"""Candidates of a block from which it pays to look whether they are few values, many times."""


@lru_cache(maxsize=4096)
def scalar(value: float, dtype: str) -> Tensor:
    """A number as a tensor without axes: torch converts a plain one at every call, for 3 µs."""
    import torch

    return torch.tensor(value, dtype=getattr(torch, dtype))


def bits(values: Tensor) -> Tensor:
    """The same memory as whole numbers."""
    import torch

    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)


def dtype_name(values: Tensor) -> str:
    """As scratch names it."""
    return _name(values.dtype)


@cache
def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


class Counts(NamedTuple):
    """Of one block: elements below the bracket, inside it, and those inside (None: too many).

    Where `times` is given, every kept value stands for so many.
    """

    below: int
    inside: int
    kept: Tensor | None
    times: Tensor | None = None


class Found(NamedTuple):
    """The value; how many of its equals are of the rank or above; how many each block holds."""

    value: float
    upper: int
    equal: list[int]


@dataclass
class Search:
    """What is known of one rank: it lies in [low, high]; `before` elements are less than low."""

    rank: int
    count: int
    sample: Tensor  # ascending, of the values in [low, high]
    dtype: str
    low: float = -math.inf
    high: float = math.inf
    before: int = 0
    points_only: bool = False
    found: Found | None = None

    def __post_init__(self) -> None:
        self.inside = self.count
        self.limit = max(SORTED, self.count // 48)  # candidates to keep in memory
        self.bracket, self.forced = self._guess()

    def _guess(self) -> tuple[tuple[float, float], bool]:
        """The next bracket to count, and whether its elements are kept however many."""
        import torch

        count = len(self.sample)
        if self.inside <= (SORTED // 4 if count else self.limit):
            return (self.low, self.high), True
        if not count:
            # Nothing of what is left was sampled, and it is much: halve the numbers themselves.
            return (_middle(self.low, self.high, self.dtype),) * 2, False
        share = min(1.0, (self.rank - self.before + 0.5) / self.inside)
        at = share * count
        error = math.sqrt(count * share * (1 - share)) + 1

        def between(errors: float) -> tuple[float, float]:
            first, last = math.floor(at - errors * error), math.ceil(at + errors * error)
            low = float(self.sample[first]) if first >= 0 else self.low
            return low, float(self.sample[last]) if last < count else self.high

        point = float(self.sample[min(count - 1, math.floor(at))])
        # Counting one value is cheaper than keeping many: worth the risk of another pass.
        low, high = between(1.5)
        if low < high:
            low, high = between(3.0)
        scale = self.inside / count
        start, stop = self._span(low, high)
        # Many of one value are kept as one.
        different = len(torch.unique_consecutive(self.sample[start:stop]))
        if self.points_only or different * scale > self.limit:
            low = high = point
        return (low, high), False

    def _span(self, low: float, high: float) -> tuple[int, int]:
        """Where the values in [low, high] lie in the sample."""
        import torch

        ends = [
            torch.searchsorted(self.sample, end, side=side)
            for end, side in ((low, "left"), (high, "right"))
        ]
        return int(ends[0]), int(ends[1])

    def learn(self, blocks: Sequence[Counts]) -> None:
        """Take the counts of a pass: the value is found, or its interval is smaller now."""
        low, high = self.bracket
        less = sum(block.below for block in blocks)
        held = sum(block.inside for block in blocks)
        if self.rank < less:
            self._narrow(self.low, next_below(low, self.dtype), self.before, less - self.before)
        elif self.rank >= less + held:
            if high == math.inf:  # NaN is all that lies above
                self.found = Found(high, 0, [0] * len(blocks))
                return
            end = self.before + self.inside
            above = -next_below(-high, self.dtype)
            self._narrow(above, self.high, less + held, end - less - held)
        elif low == high:
            self.found = Found(low, less + held - self.rank, [block.inside for block in blocks])
        else:
            if all(block.kept is not None for block in blocks):
                self.found = pick(blocks, self.rank - less)
            else:
                self.points_only = True
                self._narrow(low, high, less, held)

    def _narrow(self, low: float, high: float, before: int, inside: int) -> None:
        self.low, self.high, self.before, self.inside = low, high, before, inside
        first, last = self._span(low, high)
        self.sample = self.sample[first:last]
        self.bracket, self.forced = self._guess()


def pick(blocks: Sequence[Counts], rank: int) -> Found:
    """The element of a rank among values that are all there; NaN is larger than any."""
    import torch

    kept = [block.kept for block in blocks if block.kept is not None]
    values, times = torch.cat(kept), None
    if all(block.times is None for block in blocks):
        value = float(ascending(values)[rank])
    else:
        ordered, order = torch.sort(values)
        times = torch.cat(
            [
                torch.ones(len(b.kept), dtype=torch.int64) if b.times is None else b.times
                for b in blocks
                if b.kept is not None
            ]
        )
        value = float(ordered[torch.searchsorted(times[order].cumsum(0), rank + 1)])
    if value != value:
        return Found(math.inf, 0, [0] * len(blocks))
    # Over all blocks at once: there are many, and few values in each.
    upto, equal = values <= value, values == value
    counted = [flags.long() if times is None else flags * times for flags in (upto, equal)]
    sums = torch.nn.functional.pad(counted[1].cumsum(0), (1, 0))
    ends = torch.tensor([0, *accumulate(len(one) for one in kept)])
    return Found(value, int(counted[0].sum()) - rank, sums[ends].diff().tolist())


@cache
def has_numpy() -> bool:
    """Whether torch can share memory with numpy, which sorts several times faster."""
    import torch

    try:
        torch.zeros(1).numpy()
    except (ImportError, RuntimeError):
        return False
    return True


def shared(values: Tensor) -> Any:
    """The same memory as an array of numpy; kept with a tensor, since making it takes 3 µs."""
    found = getattr(values, "shared", None)
    if found is None:
        found = values.shared = values.numpy()  # type: ignore[attr-defined]
    return found


def ascending(values: Tensor) -> Tensor:
    """A copy on the host, sorted along the last axis; NaN is last."""
    import torch

    if has_numpy():
        values = values.to("cpu", copy=True)
        values.numpy().sort(axis=-1)
        return values
    return torch.sort(values.cpu()).values


def held(values: Tensor, search: Search, scratch: Scratch) -> Counts:
    """Counts of flat values against the bracket."""
    import torch

    n = values.numel()
    (low, high), most = search.bracket, n if search.forced else n // 4
    flags = scratch.take("order", 2 * n, "bool")
    # Comparisons of numpy, and counts of their flags, take a quarter of the time.
    fast = values.device.type == "cpu" and has_numpy()
    if fast:
        import numpy

        here, under, until = shared(values), shared(flags)[:n], shared(flags)[n:]
        below = int(numpy.count_nonzero(numpy.less(here, low, out=under)))
        inside = int(numpy.count_nonzero(numpy.less_equal(here, high, out=until))) - below
    else:
        less, upto = flags[:n], flags[n:]
        below = int(torch.lt(values, low, out=less).sum())
        inside = int(torch.le(values, high, out=upto).sum()) - below
    if low == high or inside > most:
        return Counts(below, inside, None)
    if not fast:
        return Counts(below, inside, values[less ^ upto].cpu())
    numpy.bitwise_xor(under, until, out=under)
    return Counts(below, inside, torch.from_numpy(here[numpy.flatnonzero(under)]))


def add_up(parts: Sequence[Counts]) -> Counts:
    """Counts of a block from those of its parts."""
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
    """The largest number of the dtype below `value`."""
    import torch

    exact = torch.tensor(value, dtype=getattr(torch, dtype))
    return float(torch.nextafter(exact, torch.full_like(exact, -math.inf)))


def _middle(low: float, high: float, dtype: str) -> float:
    """Halfway between two numbers in the order of all numbers of the dtype."""
    import torch

    middle = (_place(low) + _place(high)) // 2
    raw = middle if middle >= 0 else -middle | (1 << 63)
    (value,) = struct.unpack("<d", struct.pack("<Q", raw))
    return float(torch.tensor(value, dtype=getattr(torch, dtype)))


def _place(value: float) -> int:
    """A number that grows with `value`, one step per float64."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits) if bits >= 0 else -(int(bits) & ((1 << 63) - 1))
