"""The algorithm of averages in which every element of a model counts by its importance.

    W_m = w_m (F_m / N_m + ε)^p
    avg = x_0 + Σ W_m (x_m − x_0) / Σ W_m
    out = base + λ (avg − base)

x_0 is the base, or the first model. F may be 1e-19 or 1e-38 everywhere (Adam's second moments of a
large model are), so it is multiplied by a power of two that brings its largest value near 1, and
numerator and divisor lie where float32 is exact. Nothing is rounded to the result's dtype but once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..method import Algorithm, Block, MergePass, Method, StatisticsPass, Task, Tensor
from .order_statistics import parts_into
from .weighted_sum import total_of

NORMALIZE = ("model", "tensor", "none")

LEAST = 1e-30
"""Floors below this, once scaled, are added in float64."""


@dataclass(frozen=True)
class Average:
    """The parameters of a method: w_m, p, what N is, ε as a share of the mean importance, λ.

    `base_weight` is the weight of the base where it has importance of its own. With `keeps_base`,
    elements of no importance stay as in the base; else they are the mean by the weights alone.
    """

    weight: Sequence[float]
    power: float = 1.0
    normalize: str = "none"
    floor: float = 0.0
    lambda_: float = 1.0
    base_weight: float = 0.0
    keeps_base: bool = False

    def __post_init__(self) -> None:
        if self.normalize not in NORMALIZE:
            choices = ", ".join(NORMALIZE)
            raise ValueError(f"normalize must be one of {choices}, got '{self.normalize}'")
        if any(weight < 0 for weight in (*self.weight, self.base_weight)):
            raise ValueError("weights of an average by importance must be 0 or more")
        if self.weight and not any(self.weight):
            raise ValueError("the weights add up to 0; give one of the models more")
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power:g}")
        if not self.floor >= 0:
            raise ValueError(f"floor must be 0 or more (a share of the mean), got {self.floor:g}")


class ImportanceAverage(Algorithm):
    """The algorithm of a method function `method(*, parameters) -> Average`."""

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 6 * 8

    def check(self, method: Method, task: Task) -> None:
        method.check_sources(task)
        average: Average = method.call(task.values)
        if average.lambda_ != 1.0 and not task.has_base:
            raise ValueError("lambda scales the difference from the base; add base_model")

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        return AverageByImportance(method.call(task.values), task)

    def floor_share(self, method: Method, task: Task) -> float | None:
        """Return the share of sampled elements whose floor outweighs half of their importance."""
        average: Average = method.call(task.values)
        scales = _Scales.of(average, task)
        samples = [e.figures.sample for e in task.importance if e is not None]
        if scales is None or not scales.floor or not samples or not len(samples[0]):
            return None
        factors = [scales.factors[n] for n, e in enumerate(task.importance) if e is not None]
        total = sum(s * factor for s, factor in zip(samples, factors, strict=True))
        return float((total < 2 * scales.floor).double().mean())


@dataclass(frozen=True)
class _Scales:
    """Factors of the importance of each model, then of the base; and ε: in units of the largest."""

    factors: tuple[float, ...]
    floor: float

    @classmethod
    def of(cls, average: Average, task: Task) -> _Scales | None:
        """Return the scales of one tensor; None if nothing in it has importance.

        Importance of inputs that only some models have does not tell them apart.
        """
        if average.keeps_base and None in task.importance[: task.models]:
            return None
        inverse = [_inverse_norm(average, entry) for entry in task.importance]
        sizes = [
            entry.figures.largest * factor if entry else 0.0
            for entry, factor in zip(task.importance, inverse, strict=True)
        ]
        largest = max(sizes, default=0.0)
        if not largest > 0:
            return None
        exponent = math.frexp(largest)[1]
        factors = tuple(math.ldexp(factor, -exponent) for factor in inverse)
        count = task.models + any(task.importance[task.models :])  # the base, if it has any
        totals = [
            entry.figures.total * factor / max(1, entry.figures.count)
            for entry, factor in zip(task.importance, factors, strict=True)
            if entry is not None
        ]
        return cls(factors, average.floor * total_of(totals) / count)


def _inverse_norm(average: Average, entry: Any) -> float:
    if entry is None:
        return 0.0
    norm = {"none": 1.0, "tensor": entry.figures.norm, "model": entry.model.norm}
    value = norm[average.normalize]
    return 1.0 / value if value > 0 else 0.0


@dataclass
class AverageByImportance(MergePass):
    """The merge pass of an average by importance."""

    average: Average
    task: Task
    _scales: list[_Scales | None] = field(default_factory=list)

    def merge(self, block: Block, out: Tensor) -> None:
        if not self._scales:  # figures are measured after the plan is made
            self._scales.append(_Scales.of(self.average, self.task))
        scales = self._scales[0]
        work = self._work(block, scales)
        for part, target in parts_into(block, out):
            target.copy_(self._merged(part, scales, work))

    def _work(self, block: Block, scales: _Scales | None) -> str:
        wide = any(values.dtype.itemsize > 4 for values in block.tensors)
        small = scales is not None and 0 < scales.floor ** min(1e3, self.average.power) < LEAST
        if block.tensors[0].device.type == "mps":
            return "float32"
        return "float64" if wide or small or scales is None else self.task.work

    def _merged(self, part: Block, scales: _Scales | None, work: str) -> Tensor:
        task, count = self.task, part.tensors[0].numel()
        reference = part.scratch.take("reference", count, work)
        reference.copy_(part.tensors[task.models if task.has_base else 0])
        total = part.scratch.take("total", count, work).zero_()
        difference = part.scratch.take("difference", count, work)
        if scales is None:
            self._add_means(part, reference, difference, total)
        else:
            divisor = part.scratch.take("divisor", count, work).zero_()
            self._add_up(part, scales, (reference, difference, total, divisor))
            if not scales.floor and not float(divisor.amin()) > 0:
                total = self._filled(part, (reference, difference, total, divisor))
            else:
                total.div_(divisor)
        if self.average.lambda_ != 1.0:
            total.mul_(self.average.lambda_)
        return total.add_(reference)

    def _add_up(
        self, part: Block, scales: _Scales, into: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> None:
        """Add up W_m (x_m − x_0), and W_m."""
        reference, difference, total, divisor = into
        task, average = self.task, self.average
        importance = part.scratch.take("importance", reference.numel(), _name(reference))
        for number, entry in enumerate(task.importance):
            of_base = number == task.models
            weight = average.base_weight if of_base else average.weight[number]
            if not of_base:
                difference.copy_(part.tensors[number]).sub_(reference)
            if entry is None:
                if of_base:
                    continue
                importance.zero_()
            else:
                importance.copy_(part.tensors[entry.index])
                multiply(importance, scales.factors[number])
            if scales.floor:
                importance.add_(scales.floor)
            if average.power == 0.5:
                importance.sqrt_()
            elif average.power != 1.0:
                importance.pow_(average.power)
            if weight != 1.0:
                importance.mul_(weight)
            if not of_base:
                total.add_(difference.mul_(importance))
            divisor.add_(importance)

    def _filled(self, part: Block, of: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Return the quotient, with what elements of no importance are in their place."""
        reference, difference, total, divisor = of
        nothing = divisor == 0
        # The total is 0 there, or shows that a model is not finite.
        total.div_(divisor.masked_fill_(nothing, 1.0))
        if self.average.keeps_base and self.task.has_base:
            return total
        plain = divisor.zero_()
        self._add_means(part, reference, difference, plain)
        return total.add_(plain.masked_fill_(~nothing, 0.0))

    def _add_means(self, part: Block, reference: Tensor, difference: Tensor, total: Tensor) -> None:
        """Add up w_m (x_m − x_0) / Σ w_m."""
        weights = self.average.weight
        whole = total_of(weights)
        for number, weight in enumerate(weights):
            difference.copy_(part.tensors[number]).sub_(reference)
            total.add_(difference, alpha=weight / whole)


LARGEST_FACTOR = 1e38


def multiply(values: Tensor, factor: float) -> Tensor:
    """Multiply by a factor that may be beyond the range of float32, as 1/1e-44 is."""
    if factor == 1.0:
        return values
    if factor > LARGEST_FACTOR:
        exponent = math.frexp(factor)[1] // 2
        return values.mul_(math.ldexp(1.0, exponent)).mul_(math.ldexp(factor, -exponent))
    return values.mul_(factor)


def _name(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
