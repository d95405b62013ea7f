"""Family of the methods whose result is a linear combination of their sources.

The coefficients depend on the parameters and at most on the geometry of the sources, so the final
pass of all of them is one weighted sum at the speed of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from ..errors import ResultError
from ..messages import counted
from ..method import BaseRole, Block, Granularity, MergePass, Method, StatisticsPass, Task
from .gram import ColumnGram, Vectors, VectorSum, WholeGram, shape_of_vectors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Span:
    """`method(*, parameters) -> one coefficient per source` (models in order, then the base).

    `deltas`: one coefficient per model, of its difference from the base, to which the sum is
    added (if there is a base; else of the model).
    `gram`: the function gets the Gram matrix of what the coefficients belong to, as lists of
    numbers. A source that stands alone is copied.
    `vectors`: values → what is one vector. The function gets a Gram matrix [model, model, …] of
    float64 tensors, one entry per vector, and its coefficients are tensors too.
    `exact`: products in float64 also where the result has 16 bits.
    """

    deltas: bool = False
    gram: bool = False
    vectors: Callable[[Mapping[str, Any]], Vectors] | None = None
    exact: bool = False

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.ELEMENT if self._vectors(values) is Vectors.WHOLE else Granularity.ROW

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 2 if self.gram and self._vectors(values) is not Vectors.ROWS else 1

    def scratch_bytes(self, method: Method, sources: int) -> int:
        # Accumulator and one converted source, at most float64; for geometry all the sources.
        return 8 * (sources + 2) if self.gram else 16

    def check(self, method: Method, task: Task) -> None:
        if self._alone(task):
            return
        check_sources(method, task)
        if not self.gram:
            method.call(task)
        elif self.vectors is None:
            # Sources at right angles: what fails for them fails for all.
            method.call(task, [[float(i == j) for j in self._of(task)] for i in self._of(task)])

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if self._alone(task):
            return WeightedSum([1.0], task.work)
        if not self.gram:
            return WeightedSum(self._of_sources(method.call(task), task), task.work)
        deltas = self.deltas and task.has_base
        count = len(self._of(task))
        if self._vectors(task.values) is Vectors.WHOLE:
            work = "float64" if self.exact else task.work
            return WholeGram(count, deltas, work, lambda gram: self._sum(method, task, gram))
        kind, length = shape_of_vectors(task, self._vectors(task.values))
        follow = ColumnGram if kind is Vectors.COLUMNS else VectorSum
        return follow(count, deltas, length, lambda gram: method.call(task, gram))

    def _sum(self, method: Method, task: Task, gram: Tensor) -> MergePass:
        """The final pass for the Gram matrix of a whole tensor."""
        if not bool(gram.isfinite().all()):
            # Branches on an angle would hide a NaN.
            return WeightedSum([math.nan] * (task.models + task.has_base), task.work)
        try:
            found = method.call(task, gram if self.vectors else gram.tolist())
        except (ValueError, ZeroDivisionError) as error:
            raise ResultError(f"tensor '{task.name}': {error}") from None
        # What has no length adds nothing, whatever a division by its length makes of it.
        c = [float(c) if length else 0.0 for c, length in zip(found, gram.diagonal(), strict=True)]
        return WeightedSum(self._of_sources(c, task), task.work, given=False)

    def _vectors(self, values: Mapping[str, Any]) -> Vectors:
        return self.vectors(values) if self.vectors else Vectors.WHOLE

    def _alone(self, task: Task) -> bool:
        return self.gram and task.models + task.has_base == 1

    def _of(self, task: Task) -> range:
        return range(task.models + (task.has_base and not self.deltas))

    def _of_sources(self, found: Sequence[float], task: Task) -> Sequence[float]:
        """Coefficients of the sources: the base has what the deltas leave of 1."""
        if not (self.deltas and task.has_base):
            return found
        rest = 1.0 - math.fsum(found)
        # Weights like 0.1, 0.2, 0.7 add up to 1 in the recipe's words, not in binary.
        noise = 4e-16 * max(1.0, math.fsum(abs(c) for c in found))
        return [*found, 0.0 if abs(rest) <= noise else rest]


SPAN = Span()

LARGE = 16.0
"""Sum of coefficients at which float32 is no longer sure to round as well as 16 bits can."""


def check_sources(method: Method, task: Task) -> None:
    """Refuse a task whose sources are not those that the method merges. ValueError."""
    if method.base is BaseRole.REQUIRED and not task.has_base:
        raise ValueError(f"{method.name} needs the base among the sources of '{task.name}'")
    least, most = method.min_models, method.max_models
    if task.models < least or (most is not None and task.models > most):
        wanted = ("" if most == least else "at least ") + counted(least, "models")
        beside = " beside the base" if task.has_base else ""
        raise ValueError(f"{method.name} merges {wanted}{beside}; '{task.name}' has {task.models}")


@dataclass
class WeightedSum(MergePass):
    """out = scale · Σ c_i x_i, with one rounding at the end.

    Where the coefficients are in the ratio of whole numbers up to 1024 (equal weights, 0.37:0.63),
    the sum is taken with those and scaled once: products of such numbers with 8 or 11 bits of
    mantissa are exact in float32, so terms that cancel leave no rounding noise behind. Others are
    summed in float64 (a sixth more time) if they are `given` by the recipe; those that come from
    the geometry of the models only if they are large, with which terms are bound to cancel.
    """

    coefficients: Sequence[float]
    work: str
    scale: float = 1.0
    given: bool = True

    def __post_init__(self) -> None:
        large = math.fsum(abs(c) for c in self.coefficients) > LARGE
        self.coefficients, self.scale = whole_ratio(self.coefficients)
        exact = all(float(c).is_integer() for c in self.coefficients)
        if large or (self.given and not exact):
            self.work = "float64"
        self.used = [i for i, c in enumerate(self.coefficients) if c != 0.0]
        first = abs(self.coefficients[self.used[0]]) if self.used else 0.0
        if math.frexp(first)[0] == 0.5:
            # A power of two moves to the scale without rounding, and saves a product.
            self.coefficients = [c / first for c in self.coefficients]
            self.scale *= first

    def in_float64(self) -> MergePass | None:
        if self.work == "float64":
            return None
        other = copy(self)
        other.work = "float64"
        return other

    @property
    def accumulates_in(self) -> str:  # type: ignore[override]
        return self.work

    def merge(self, block: Block, out: Tensor) -> None:
        if not self.used:
            out.zero_()
            return
        if len(self.used) == 1 and self.coefficients[self.used[0]] * self.scale == 1.0:
            out.copy_(block.tensors[self.used[0]])
            return
        work = "float32" if out.device.type == "mps" else self.work  # it knows no float64
        total = block.scratch.take("sum", out.numel(), work)
        term = block.scratch.take("term", out.numel(), work)
        if out.dim() > 1:
            total, term = total.view(out.shape), term.view(out.shape)
        self._add_up(block, total, term)
        if self.scale != 1.0:
            total.mul_(self.scale)
        out.copy_(total)

    def _add_up(self, block: Block, total: Tensor, term: Tensor) -> None:
        import torch

        first, *rest = self.used
        c, values, dtype = self.coefficients[first], block.tensors[first], total.dtype
        if values.dtype == dtype and c != 1.0:
            torch.mul(values, c, out=total)
        elif values.dtype == dtype and rest and block.tensors[rest[0]].dtype == dtype:
            second = rest.pop(0)
            c = self.coefficients[second]
            torch.add(values, block.tensors[second], alpha=c, out=total)
        else:
            total.copy_(values)
            if c != 1.0:
                total.mul_(c)
        for source in rest:
            values = block.tensors[source]
            if values.dtype != dtype:
                # Two passes over cached memory: half the time of one that mixes dtypes.
                values = term.copy_(values)
            total.add_(values, alpha=self.coefficients[source])


def whole_ratio(
    coefficients: Sequence[float], largest: int = 1024
) -> tuple[tuple[float, ...], float]:
    """`(whole numbers, scale)` with c_i = scale · n_i to double precision, else `(c, 1.0)`."""
    as_given = tuple(coefficients), 1.0
    top = max((abs(c) for c in coefficients), default=0.0)
    if top == 0.0 or not all(math.isfinite(c) for c in coefficients):
        return as_given
    ratios = [Fraction(c / top).limit_denominator(largest) for c in coefficients]
    common = math.lcm(*(ratio.denominator for ratio in ratios))
    near = all(abs(r - c / top) <= 1e-13 for r, c in zip(ratios, coefficients, strict=True))
    if not near or common > largest:
        return as_given
    whole = tuple(float(ratio * common) for ratio in ratios)
    return whole, math.fsum(map(abs, coefficients)) / math.fsum(map(abs, whole))
