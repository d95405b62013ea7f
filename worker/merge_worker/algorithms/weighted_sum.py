"""The algorithm of methods whose result is a linear combination of their sources.

Coefficients depend on the parameters and at most on lengths and angles of the sources (their Gram
matrix), so the merge pass of all of them is one weighted sum at the speed of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from ..errors import ResultError
from ..method import Algorithm, Block, Granularity, MergePass, Method, StatisticsPass, Task, Tensor
from .gram import (
    PRODUCTS,
    CancellationError,
    ColumnGram,
    KnownLength,
    Lengths,
    PerVectorSum,
    TensorGram,
    Vectors,
)
from .tree_sum import MOST_HEIGHTS


@dataclass(frozen=True)
class LinearCombination(Algorithm):
    """The algorithm of a method function `method([gram], *, parameters) -> coefficients`.

    Without options the function returns one coefficient per source: models in recipe order, then
    the base. Options:

    `task_vectors`: one coefficient per model, of its task vector x_m − base; the base is added to
        the sum. Without a base in the recipe the coefficients are those of the models.
    `gram`: the function receives the Gram matrix (all dot products) of the vectors that the
        coefficients belong to, as lists of floats. A source that is alone in its slice is copied.
    `vectors`: maps parameter values to what counts as one vector: the tensor, its rows or its
        columns. The function then receives the Gram matrix as float64 tensors [model, model, …]
        with one entry per vector, and returns coefficients as tensors.
    `lengths`: the function receives `Lengths` of whole tensors as well, to ask for the length of
        a sum that may cancel.
    `exact`: compute dot products in float64 even if the result has 16 bits.
    """

    task_vectors: bool = False
    gram: bool = False
    vectors: Callable[[Mapping[str, Any]], Vectors] | None = None
    lengths: bool = False
    exact: bool = False

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.ELEMENT if self._vectors(values) is Vectors.TENSOR else Granularity.ROW

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 2 if self.gram and self._vectors(values) is not Vectors.ROWS else 1

    def scratch_bytes(self, method: Method, sources: int) -> int:
        # Accumulator and one converted source, at most float64; for dot products all sources.
        return 8 * (sources + 2) if self.gram else 16

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        if not self.gram or self._has_single_source(task):
            return 0
        matrix = 8 * self._vector_count(task) ** 2
        vectors = self._vectors(task.values)
        if vectors is Vectors.TENSOR:
            return MOST_HEIGHTS * matrix + 3 * max(matrix, 8 * PRODUCTS)
        length = task.shape[-1] if task.shape else 1
        if vectors is Vectors.ROWS or len(task.shape) < 2:
            return 4 * matrix * -(-block // length)
        return (MOST_HEIGHTS + 4) * matrix * math.prod(task.shape[1:])

    def check(self, method: Method, task: Task) -> None:
        if self._has_single_source(task):
            return
        method.check_sources(task)
        if not self.gram:
            self._check_count(method, task, method.call(task.values))
        elif self.vectors is None:
            # Orthogonal unit vectors: parameters that fail for these fail for any vectors.
            indices = range(self._vector_count(task))
            gram = [[float(i == j) for j in indices] for i in indices]
            method.call(task.values, gram, *([Lengths(gram)] if self.lengths else []))

    def _check_count(self, method: Method, task: Task, coefficients: Any) -> None:
        """Raise ValueError unless a method returned one number for each of its vectors."""
        expected = self._vector_count(task)
        if not isinstance(coefficients, Sequence) or len(coefficients) != expected:
            shown = repr(coefficients)[:60]
            raise ValueError(f"{method.name} must return {expected} coefficients, got {shown}")

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if self._has_single_source(task):
            return WeightedSum([1.0], task.work)
        if not self.gram:
            return self._merge_pass(method.call(task.values), task)
        vectors = self._vectors(task.values)
        if vectors is Vectors.TENSOR:
            return self._gram_pass(method, task, "float64" if self.exact else task.work)
        subtract_base, count = self._subtracts_base(task), self._vector_count(task)
        coefficients = partial(method.call, task.values)
        # Columns of a tensor with a single axis are its only row.
        if vectors is Vectors.COLUMNS and len(task.shape) > 1:
            length, size = math.prod(task.shape[1:]), math.prod(task.shape)
            return ColumnGram(count, subtract_base, length, coefficients, size)
        length = task.shape[-1] if task.shape else 1
        return PerVectorSum(count, subtract_base, length, coefficients)

    def _gram_pass(self, method: Method, task: Task, work: str) -> TensorGram:
        count, size = self._vector_count(task), math.prod(task.shape)
        then = partial(self._then, method, task, work)
        return TensorGram(count, self._subtracts_base(task), work, size, then)

    def _then(
        self,
        method: Method,
        task: Task,
        work: str,
        gram: Tensor,
        known: KnownLength = ((), 0.0),
    ) -> StatisticsPass | MergePass:
        """Return the pass that follows the Gram matrix of whole tensors."""
        if not bool(gram.isfinite().all()):
            # NaN in the result shows the fault; branches on an angle could hide it.
            return WeightedSum([math.nan] * (task.models + task.has_base), task.work)
        try:
            products = gram.tolist()
            lengths = [Lengths(products, work, known)] if self.lengths else []
            coefficients = method.call(task.values, gram if self.vectors else products, *lengths)
        except CancellationError as wanted:
            if not wanted.coefficients:
                return self._gram_pass(method, task, "float64")
            again = partial(self._then, method, task, work, gram)
            return SumLength(wanted.coefficients, self._subtracts_base(task), again)
        except (ValueError, ZeroDivisionError) as error:
            raise ResultError(f"tensor '{task.name}': {error}") from None
        # A vector of length 0 adds nothing, whatever a division by its length gives.
        coefficients = [
            float(c) if length else 0.0
            for c, length in zip(coefficients, gram.diagonal(), strict=True)
        ]
        return self._merge_pass(coefficients, task, from_recipe=False)

    def _vectors(self, values: Mapping[str, Any]) -> Vectors:
        return self.vectors(values) if self.vectors else Vectors.TENSOR

    def _has_single_source(self, task: Task) -> bool:
        return self.gram and task.models + task.has_base == 1

    def _vector_count(self, task: Task) -> int:
        return task.models + (task.has_base and not self.task_vectors)

    def _subtracts_base(self, task: Task) -> bool:
        return self.task_vectors and task.has_base

    def _merge_pass(
        self, coefficients: Sequence[float], task: Task, from_recipe: bool = True
    ) -> MergePass:
        """Return the weighted sum: the base gets 1 − Σ c_m of its task vectors."""
        if self._subtracts_base(task):
            size = total_of(map(abs, coefficients))
            if size > FAR:
                return TaskVectorSum(coefficients)
            rest = 1.0 - math.fsum(coefficients)
            # Weights like 0.1, 0.2, 0.7 add up to 1 in decimal digits but not in binary.
            noise = 4e-16 * max(1.0, size)
            coefficients = [*coefficients, 0.0 if abs(rest) <= noise else rest]
        return WeightedSum(coefficients, task.work, from_recipe=from_recipe)


def total_of(numbers: Iterable[float]) -> float:
    """Return the sum of any numbers, rounded once; Inf where math.fsum overflows."""
    numbers = list(numbers)
    try:
        return math.fsum(numbers)
    except OverflowError:
        return sum(numbers)


def scaled(weights: Sequence[float]) -> list[float]:
    """Return the weights times a power of two with which no sum of them overflows."""
    exponent = max((math.frexp(w)[1] for w in weights if w), default=0)
    return [math.ldexp(w, -exponent) for w in weights]


LARGE = 16.0  # sum of |coefficients| from which float32 may round worse than 16 bits can show

FAR = 1024.0  # sum of |coefficients| from which 1 − Σ c_m loses too much of the base


def task_vector_sum(block: Block, coefficients: Sequence[float], subtract_base: bool) -> Tensor:
    """Return Σ c_i (x_i − base), or Σ c_i x_i, in float64 in flat scratch memory."""
    count, base = block.tensors[0].numel(), block.tensors[-1].view(-1)
    work = "float32" if base.device.type == "mps" else "float64"
    total, term = (block.scratch.take(slot, count, work) for slot in ("sum", "term"))
    total.zero_()
    for c, values in zip(coefficients, block.tensors, strict=False):
        if c:
            term.copy_(values.view(-1))
            total.add_(term.sub_(base) if subtract_base else term, alpha=c)
    return total


@dataclass
class SumLength(StatisticsPass):
    """The pass that computes ‖Σ c_i x_i‖ from the sum itself, as `task_vector_sum` gives it."""

    coefficients: Sequence[float]
    subtract_base: bool
    then: Callable[[KnownLength], StatisticsPass | MergePass]

    def collect(self, block: Block) -> float:
        total = task_vector_sum(block, self.coefficients, self.subtract_base)
        return float(total.dot(total))

    def next_pass(self, partials: Sequence[float]) -> StatisticsPass | MergePass:
        return self.then((tuple(self.coefficients), math.sqrt(math.fsum(partials))))


@dataclass
class TaskVectorSum(MergePass):
    """The merge pass out = base + Σ c_m (x_m − base) in float64, for large coefficients."""

    coefficients: Sequence[float]

    def merge(self, block: Block, out: Tensor) -> None:
        total = task_vector_sum(block, self.coefficients, subtract_base=True)
        out.copy_(total.add_(block.tensors[-1].view(-1)).view(out.shape))


@dataclass
class WeightedSum(MergePass):
    """The merge pass out = scale · Σ c_i x_i, rounded once at the end.

    Coefficients in the ratio of whole numbers up to 1024 (equal weights, 0.37 : 0.63) are replaced
    by these numbers and a scale: products of such numbers with mantissas of 8 or 11 bits are exact
    in float32, so terms that cancel leave no rounding noise. Other coefficients are summed in
    float64 (a sixth more time) if they are `from_recipe`; coefficients computed from the models
    only if they are LARGE, since large terms are bound to cancel.
    """

    coefficients: Sequence[float]
    work: str
    scale: float = 1.0
    from_recipe: bool = True

    def __post_init__(self) -> None:
        large = total_of(map(abs, self.coefficients)) > LARGE
        self.coefficients, self.scale = whole_ratio(self.coefficients)
        exact = all(float(c).is_integer() for c in self.coefficients)
        if large or (self.from_recipe and not exact):
            self.work = "float64"
        self.used = [i for i, c in enumerate(self.coefficients) if c != 0.0]
        first = abs(self.coefficients[self.used[0]]) if self.used else 0.0
        largest = max(map(abs, self.coefficients), default=0.0)
        if math.frexp(first)[0] == 0.5 and largest <= FAR * first:
            # A power of two moves into the scale without rounding, and saves a product.
            self.coefficients = [c / first for c in self.coefficients]
            self.scale *= first

    def in_float64(self) -> MergePass | None:
        if self.work == "float64":
            return None
        wider = copy(self)
        wider.work = "float64"
        return wider

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
        work = "float32" if out.device.type == "mps" else self.work  # MPS has no float64
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
                # Two passes over cached memory take half the time of one that mixes dtypes.
                values = term.copy_(values)
            total.add_(values, alpha=self.coefficients[source])


def whole_ratio(
    coefficients: Sequence[float], largest: int = 1024
) -> tuple[tuple[float, ...], float]:
    """Return `(whole numbers n, scale)` with c_i = scale · n_i to double precision.

    Returns `(coefficients, 1.0)` if there are no such numbers up to `largest`.
    """
    unchanged = tuple(coefficients), 1.0
    top = max((abs(c) for c in coefficients), default=0.0)
    if top == 0.0 or not all(math.isfinite(c) for c in coefficients):
        return unchanged
    ratios = [Fraction(c / top).limit_denominator(largest) for c in coefficients]
    common = math.lcm(*(ratio.denominator for ratio in ratios))
    near = all(abs(r - c / top) <= 1e-13 for r, c in zip(ratios, coefficients, strict=True))
    size = total_of(map(abs, coefficients))
    if not near or common > largest or math.isinf(size):
        return unchanged
    whole = tuple(float(ratio * common) for ratio in ratios)
    return whole, size / math.fsum(map(abs, whole))
