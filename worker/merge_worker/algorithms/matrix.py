"""The algorithm of methods that merge task vectors as matrices, by singular values and vectors.

Tensors of two axes are matrices, embeddings and heads included, as in the papers' code; experts
stacked on a first axis are one matrix each, so that memory is bounded by one of them. All other
tensors (vectors, kernels of convolutions) get the mean of the task vectors, as in that code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..method import (
    Algorithm,
    Block,
    Cost,
    Granularity,
    MergePass,
    Method,
    Task,
    Tensor,
    matrix_shape,
)
from .spectral import PANEL, row_panels
from .weighted_sum import WeightedSum


@dataclass
class MatrixRule(ABC):
    """The merge of one matrix that follows from the parameters of a method.

    `long` ≥ `short` are the sides of the matrix. The result is base + alpha · merged.
    """

    alpha: float

    @abstractmethod
    def merged(self, deltas: MatrixDeltas) -> Tensor:
        """Return the merged task vector of one matrix, before `alpha`."""

    @abstractmethod
    def flops(self, models: int, long: int, short: int) -> int:
        """Return the floating-point operations for one matrix."""

    @abstractmethod
    def peak_numbers(self, models: int, long: int, short: int) -> int:
        """Return how many numbers of working precision are in memory at once.

        One spectrum is not included.
        """


class MatrixAlgorithm(Algorithm):
    """The algorithm of a method function `method(*, parameters) -> MatrixRule`."""

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.MATRIX

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 16

    def cost(self, method: Method, task: Task) -> Cost:
        sides = matrix_shape(task.shape)
        if sides is None or not min(task.shape):
            return Cost(0, self.scratch_bytes(method, task.models + task.has_base))
        rule: MatrixRule = method.call(task.values)
        long, short = max(sides), min(sides)
        numbers = rule.peak_numbers(task.models, long, short)
        peak_bytes = numbers * (8 if task.work == "float64" else 4)
        # A Gram matrix, its eigenvectors and the solver's workspace, in float64.
        peak_bytes += 8 * 6 * short * short + 8 * 3 * max(PANEL, short)
        matrices = math.prod(task.shape) // (long * short)
        flops = matrices * rule.flops(task.models, long, short)
        return Cost(flops, -(-peak_bytes // (long * short)))

    def begin(self, method: Method, task: Task) -> MergePass:
        rule: MatrixRule = method.call(task.values)
        sides = matrix_shape(task.shape)
        if sides is None:
            mean = rule.alpha / task.models
            return WeightedSum([*[mean] * task.models, 1 - rule.alpha], task.work)
        return _MergeMatrices(rule, task, sides)


MATRIX = MatrixAlgorithm()


@dataclass
class _MergeMatrices(MergePass):
    """The merge pass out = base + alpha · merged, one matrix per block, rounded once at the end."""

    rule: MatrixRule
    task: Task
    sides: tuple[int, int]

    def merge(self, block: Block, out: Tensor) -> None:
        import torch

        sources = [values.view(self.sides) for values in block.tensors]
        target = out.view(self.sides)
        if not all(bool(part.isfinite().all()) for x in sources for part in row_panels(x)):
            # Eigensolvers refuse NaN and Inf; the engine then names the file that contains them.
            target.fill_(math.nan)
            return
        if self.sides[0] < self.sides[1]:
            sources, target = [x.mT for x in sources], target.mT
        *models, base = sources
        merged = self.rule.merged(MatrixDeltas(models, base, getattr(torch, self.task.work)))
        target.copy_(merged.mul_(self.rule.alpha).add_(base))


@dataclass
class MatrixDeltas:
    """The task vectors of one matrix, with no more columns than rows, computed when indexed."""

    models: list[Tensor]
    base: Tensor
    work: Any

    def __len__(self) -> int:
        return len(self.models)

    @property
    def short(self) -> int:
        return self.base.shape[1]

    def __getitem__(self, model: int) -> Tensor:
        import torch

        delta = torch.empty_like(self.base, dtype=self.work, memory_format=torch.contiguous_format)
        return delta.copy_(self.models[model]).sub_(self.base)

    def sum(self) -> Tensor:
        import torch

        total = self[0]
        for model in self.models[1:]:
            # In two steps, since x - base is exact where x is near the base.
            panels = (row_panels(x) for x in (total, model, self.base))
            for into, x, base in zip(*panels, strict=True):
                into.add_(torch.sub(x.to(self.work), base.to(self.work)))
        return total

    def rounding(self, *models: int) -> float:
        """Return the largest singular value that rounding of the stored values makes by itself.

        Rounding to a step u errs by u / √12; over the values between two powers of 2, u² is on
        average 0.54 ε² x². A matrix of independent errors e has the largest singular value
        e (√rows + √columns), within a tenth.
        """
        import torch

        rows, columns = self.base.shape
        squares = 0.0
        for number in models:
            x = self.models[number]
            size = math.fsum(float(part.float().square().sum()) for part in row_panels(x))
            squares += torch.finfo(x.dtype).eps ** 2 * 0.54 / 12 * size / (rows * columns)
        return 1.1 * math.sqrt(squares) * (math.sqrt(rows) + math.sqrt(columns))


def concentrated(total: float, squares: float, short: int) -> bool:
    """Return whether few of `short` singular values are large, from their sum and square sum."""
    return total * total < squares * short / 4


def significant_count(values: Tensor, short: int, rounding: float) -> int:
    """Return how many of the descending singular values are more than rounding.

    All that are not 0; but of a low-rank task vector (a merged and stored adapter) only those
    larger than what rounding makes, since most of the others are noise.
    """
    above = int((values > rounding).sum())
    total, squares = float(values.sum()), float(values.square().sum())
    if 0 < above < short / 2 and concentrated(total, squares, short):
        return above
    return len(values)
