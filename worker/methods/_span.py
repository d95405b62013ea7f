"""Family of the methods whose result is a linear combination of their sources.

The coefficients depend on the parameters and at most on the geometry of the sources, so the final
pass of all of them is one weighted sum at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._define import Block, Cut, Final, Method, Reduce, Task

if TYPE_CHECKING:
    from torch import Tensor


class Span:
    """`method(*, parameters) -> one coefficient per source` (models in order, then the base)."""

    def cut(self, method: Method, values: Mapping[str, Any]) -> Cut:
        return Cut.ELEMENT

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 1

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 16  # accumulator and one converted source, at most float64

    def check(self, method: Method, task: Task) -> None:
        method.call(task)

    def begin(self, method: Method, task: Task) -> Reduce | Final:
        return WeightedSum(method.call(task), task.work)


SPAN = Span()


@dataclass
class WeightedSum(Final):
    """out = scale · Σ c_i x_i, with one rounding at the end.

    Where the coefficients are in the ratio of small whole numbers (equal weights, 2:1:1, 0.3:0.7),
    the sum is taken with those and scaled once: products of such numbers with 8 or 11 bits of
    mantissa are exact in float32, so terms that cancel leave no rounding noise behind.
    """

    coefficients: Sequence[float]
    work: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.coefficients, self.scale = whole_ratio(self.coefficients)
        self.used = [i for i, c in enumerate(self.coefficients) if c != 0.0]

    def merge(self, block: Block, out: Tensor) -> None:
        if not self.used:
            out.zero_()
            return
        if len(self.used) == 1 and self.coefficients[self.used[0]] * self.scale == 1.0:
            out.copy_(block.tensors[self.used[0]])
            return
        shape = out.shape
        total = block.scratch.take("sum", out.numel(), self.work).view(shape)
        term = block.scratch.take("term", out.numel(), self.work).view(shape)
        for number, source in enumerate(self.used):
            c = self.coefficients[source]
            if number == 0:
                total.copy_(block.tensors[source])
                if c != 1.0:
                    total.mul_(c)
            else:
                # Two passes over cached memory: half the time of one that mixes dtypes.
                term.copy_(block.tensors[source])
                total.add_(term, alpha=c)
        if self.scale != 1.0:
            total.mul_(self.scale)
        out.copy_(total)


def whole_ratio(
    coefficients: Sequence[float], largest: int = 256, denominators: int = 16
) -> tuple[tuple[float, ...], float]:
    """`(whole numbers, scale)` with c_i = scale · n_i to double precision, else `(c, 1.0)`."""
    nonzero = [abs(c) for c in coefficients if c != 0.0]
    if not nonzero:
        return tuple(coefficients), 1.0
    smallest = min(nonzero)
    for denominator in range(1, denominators + 1):
        scaled = [c / smallest * denominator for c in coefficients]
        if max(abs(s) for s in scaled) > largest:
            break
        if all(abs(s - round(s)) <= 1e-12 * max(1.0, abs(s)) for s in scaled):
            whole = tuple(float(round(s)) for s in scaled)
            return whole, sum(abs(c) for c in coefficients) / sum(abs(w) for w in whole)
    return tuple(coefficients), 1.0
