"""Search for the element of one rank: which bracket to count next, and what the counts tell."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SORTED = 1 << 14
"""Up to this many elements are simply sorted."""

GROUP = 32
"""Candidates are gathered from groups of so many elements that hold one."""


@lru_cache(maxsize=4096)
def scalar(value: float, dtype: str) -> Tensor:
    """A number as a tensor without axes: torch converts a plain one at every call, for 3 µs."""
    import torch

    return torch.tensor(value, dtype=getattr(torch, dtype))


class Counts(NamedTuple):
    """Of one block: elements below the bracket, inside it, and those inside (None: too many)."""

    below: int
    inside: int
    kept: Tensor | None


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
        self.limit = max(SORTED, self.count // 128)  # candidates to keep in memory
        self.bracket, self.forced = self._guess()

    def _guess(self) -> tuple[tuple[float, float], bool]:
        """The next bracket to count, and whether its elements are kept however many."""
        count = len(self.sample)
        if self.inside <= (SORTED // 4 if count else self.limit):
            return (self.low, self.high), True
        if not count:
            # Nothing of what is left was sampled, and it is much: halve the numbers themselves.
            return (_middle(self.low, self.high, self.dtype),) * 2, False
        share = min(1.0, (self.rank - self.before + 0.5) / self.inside)
        at = share * count
        margin = 3.5 * math.sqrt(count * share * (1 - share)) + 2
        first, last = math.floor(at - margin), math.ceil(at + margin)
        low = float(self.sample[first]) if first >= 0 else self.low
        high = float(self.sample[last]) if last < count else self.high
        point = float(self.sample[min(count - 1, math.floor(at))])
        scale = self.inside / count
        # Counting one value is cheaper than keeping many; not if the value were a poor guess.
        likely = self._sampled(point, point) * scale > max(self.limit // 8, margin * scale / 2)
        if self.points_only or likely or self._sampled(low, high) * scale > self.limit:
            low = high = point
        return (low, high), False

    def _sampled(self, low: float, high: float) -> int:
        first, last = self._span(low, high)
        return last - first

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
            kept = [block.kept for block in blocks if block.kept is not None]
            if len(kept) == len(blocks):
                self.found = pick(kept, self.rank - less)
            else:
                self.points_only = True
                self._narrow(low, high, less, held)

    def _narrow(self, low: float, high: float, before: int, inside: int) -> None:
        self.low, self.high, self.before, self.inside = low, high, before, inside
        first, last = self._span(low, high)
        self.sample = self.sample[first:last]
        self.bracket, self.forced = self._guess()


def pick(blocks: Sequence[Tensor], rank: int) -> Found:
    """The element of a rank among values that are all there; NaN is larger than any."""
    import torch

    ordered = ascending(torch.cat(list(blocks)))
    value = float(ordered[rank])
    if value != value:
        return Found(math.inf, 0, [0] * len(blocks))
    upper = int((ordered <= value).sum()) - rank
    return Found(value, upper, [int((block == value).sum()) for block in blocks])


@cache
def has_numpy() -> bool:
    """Whether torch can share memory with numpy, which sorts several times faster."""
    import torch

    try:
        torch.zeros(1).numpy()
    except (ImportError, RuntimeError):
        return False
    return True


def ascending(values: Tensor) -> Tensor:
    """A copy on the host, sorted along the last axis; NaN is last."""
    import torch

    if has_numpy():
        values = values.to("cpu", copy=True)
        values.numpy().sort(axis=-1)
        return values
    return torch.sort(values.cpu()).values


def count(values: Tensor, search: Search, flags: Tensor) -> Counts:
    """Counts of flat values against the bracket; `flags` is scratch of twice their number."""
    import torch

    low, high = search.bracket
    n = values.numel()
    # Flags as numbers: three times faster than bool, and exact in sums up to 2^24.
    less = torch.lt(values, scalar(low, search.dtype), out=flags[:n])
    upto = torch.le(values, scalar(high, search.dtype), out=flags[n:])
    if low == high:
        below = int(less.sum())
        return Counts(below, int(upto.sum()) - below, None)
    whole = n // GROUP * GROUP
    groups_less = less[:whole].view(-1, GROUP).sum(1)
    groups_upto = upto[:whole].view(-1, GROUP).sum(1)
    below = int(groups_less.sum()) + int(less[whole:].sum())
    inside = int(groups_upto.sum()) + int(upto[whole:].sum()) - below
    if inside > n // 4 and not search.forced:
        return Counts(below, inside, None)
    hit = (groups_upto > groups_less).nonzero().view(-1)
    # The flags have done their duty: a buffer of its own would cost more than the copy.
    near = flags[: hit.numel() * GROUP].view(-1, GROUP)
    torch.index_select(values[:whole].view(-1, GROUP), 0, hit, out=near)
    kept = [_inside(near.view(-1), low, high), _inside(values[whole:], low, high)]
    return Counts(below, inside, torch.cat(kept).cpu())


def _inside(values: Tensor, low: float, high: float) -> Tensor:
    return values[(values >= low) & (values <= high)]


def add_up(parts: Sequence[Counts]) -> Counts:
    """Counts of a block from those of its parts."""
    import torch

    kept = [part.kept for part in parts if part.kept is not None]
    together = torch.cat(kept) if len(kept) == len(parts) else None
    return Counts(sum(p.below for p in parts), sum(p.inside for p in parts), together)


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
