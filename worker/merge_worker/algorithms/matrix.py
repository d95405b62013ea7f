"""Family of the methods that see a delta as a matrix: its singular values, its directions.

Tensors of two axes are matrices, embeddings and heads included, as in the papers' code; experts
stacked on a first axis are one matrix each, so that memory is bounded by one of them. All other
tensors (vectors, kernels of convolutions) get the mean of the deltas, again as there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..method import Block, Cost, Granularity, MergePass, Method, Task, matrix_shape
from .spectral import PANEL, some_rows
from .weighted_sum import WeightedSum, check_sources

if TYPE_CHECKING:
    from torch import Tensor


class Rule(ABC):
    """What the function of a method of this family returns; `long` ≥ `short` are sides."""

    alpha: float

    @abstractmethod
    def delta(self, deltas: Deltas) -> Tensor:
        """The merged delta of one matrix, before `alpha`."""

    @abstractmethod
    def flops(self, models: int, long: int, short: int) -> int:
        """Floating-point operations of one matrix."""

    @abstractmethod
    def numbers(self, models: int, long: int, short: int) -> int:
        """Numbers in working precision that are held at once, beside one spectrum."""


class Matrix:
    """`method(*, parameters) -> Rule`."""

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.MATRIX

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 1

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 16

    def cost(self, method: Method, task: Task) -> Cost:
        sides = matrix_shape(task.shape)
        if sides is None or not min(task.shape):
            return Cost(0, self.scratch_bytes(method, task.models + task.has_base))
        rule: Rule = method.call(task)
        long, short = max(sides), min(sides)
        held = rule.numbers(task.models, long, short) * (8 if task.work == "float64" else 4)
        # A Gram matrix, its eigenvectors and the solver's workspace, in float64.
        held += 8 * 6 * short * short + 8 * 3 * max(PANEL, short)
        matrices = math.prod(task.shape) // (long * short)
        flops = matrices * rule.flops(task.models, long, short)
        return Cost(flops, -(-held // (long * short)))

    def check(self, method: Method, task: Task) -> None:
        check_sources(method, task)

    def begin(self, method: Method, task: Task) -> MergePass:
        rule: Rule = method.call(task)
        sides = matrix_shape(task.shape)
        if sides is None:
            share = rule.alpha / task.models
            return WeightedSum([*[share] * task.models, 1 - rule.alpha], task.work)
        return _PerMatrix(rule, task, sides)


MATRIX = Matrix()


@dataclass
class _PerMatrix(MergePass):
    """out = base + alpha · delta, with one rounding at the end."""

    rule: Rule
    task: Task
    sides: tuple[int, int]

    def merge(self, block: Block, out: Tensor) -> None:
        import torch

        sources = [values.view(self.sides) for values in block.tensors]
        merged = out.view(self.sides)
        if not all(bool(part.isfinite().all()) for x in sources for part in some_rows(x)):
            # Eigensolvers refuse them; the engine then names the file that has them.
            merged.fill_(math.nan)
            return
        if self.sides[0] < self.sides[1]:
            sources, merged = [x.mT for x in sources], merged.mT
        *models, base = sources
        delta = self.rule.delta(Deltas(models, base, getattr(torch, self.task.work)))
        merged.copy_(delta.mul_(self.rule.alpha).add_(base))


@dataclass
class Deltas:
    """Differences of the models from the base, as matrices with no more columns than rows."""

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
            parts = (some_rows(x) for x in (total, model, self.base))
            for into, x, base in zip(*parts, strict=True):
                into.add_(torch.sub(x.to(self.work), base.to(self.work)))
        return total

    def rounding(self, *models: int) -> float:
        """The largest singular value that the rounding of stored values makes by itself.

        Rounding to a step u errs by u / √12; over the values between two powers of 2, u² is on
        average 0.54 ε² x². A matrix of independent errors e has the largest singular value
        e (√rows + √columns), within a tenth.
        """
        import torch

        rows, columns = self.base.shape
        squares = 0.0
        for number in models:
            x = self.models[number]
            size = math.fsum(float(part.float().square().sum()) for part in some_rows(x))
            squares += torch.finfo(x.dtype).eps ** 2 * 0.54 / 12 * size / (rows * columns)
        return 1.1 * math.sqrt(squares) * (math.sqrt(rows) + math.sqrt(columns))


def concentrated(total: float, squares: float, short: int) -> bool:
    """Whether few of `short` singular values are large, from their sum and sum of squares."""
    return total * total < squares * short / 4


def significant(values: Tensor, short: int, rounding: float) -> int:
    """How many of the descending singular values belong to what was learnt.

    All that are not 0; but of a low-rank delta (an adapter, merged and stored) those that are
    larger than what rounding makes: few of the others are more than noise.
    """
    above = int((values > rounding).sum())
    total, squares = float(values.sum()), float(values.square().sum())
    if 0 < above < short / 2 and concentrated(total, squares, short):
        return above
    return len(values)
