"""The rule of the RAM methods: what one model alone changed, apart from what several changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..method import Block, MergePass, StatisticsPass, Task
from .order_statistics import parts, parts_into
from .task_vectors import Rule, Unchanged, base_of, deltas_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Overlap(Rule):
    """λ_m = 1 + r · clamp(shared/unique, 0, alpha); r is 0 where unique parts are not amplified."""

    epsilon: float
    r: float = 0.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon is {self.epsilon:g}; it is a magnitude, 0 or more")

    @property
    def reads(self) -> int:
        return 1 + (self.r != 0)

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        if not math.prod(task.shape):
            return Unchanged()
        return Census(self, task) if self.r else Reinforce(self, task, [1.0] * task.models)


def active_deltas(part: Block, base: Tensor, models: int, epsilon: float) -> tuple[Tensor, ...]:
    """Deltas, zero where |δ| ≤ epsilon."""
    import torch

    deltas = deltas_of(part, base, range(models))
    torch.hardshrink(deltas.all, epsilon, out=deltas.all)
    return deltas.each


def actives(part: Block, deltas: Sequence[Tensor]) -> Tensor:
    """How many models changed each element."""
    import torch

    work = str(deltas[0].dtype).removeprefix("torch.")
    count = part.scratch.take("divisor", deltas[0].numel(), work).zero_()
    term = part.scratch.take("mask", count.numel(), work)
    for delta in deltas:
        count.add_(torch.ne(delta, 0, out=term))
    return count


@dataclass
class Census(StatisticsPass):
    """Of every model: elements that it changed with others, and alone."""

    rule: Overlap
    task: Task

    def collect(self, block: Block) -> list[tuple[int, int]]:
        import torch

        found = [(0, 0)] * self.task.models
        for part in parts(block):
            base = base_of(part, self.task.work)
            deltas = active_deltas(part, base, self.task.models, self.rule.epsilon)
            count = actives(part, deltas)
            alone = torch.eq(count, 1, out=base)
            for m, delta in enumerate(deltas):
                changed = torch.ne(delta, 0, out=delta)
                unique = int(torch.mul(changed, alone, out=count).sum())
                found[m] = (found[m][0] + int(changed.sum()) - unique, found[m][1] + unique)
        return found

    def next_pass(self, partials: Sequence[list[tuple[int, int]]]) -> MergePass:
        factors = []
        for m in range(self.task.models):
            shared, unique = (sum(p[m][i] for p in partials) for i in (0, 1))
            # epsilon in place of a count of 0, as in mergekit; 0/0 is nothing shared.
            ratio = shared / max(unique, self.rule.epsilon) if shared else 0.0
            factors.append(1 + self.rule.r * min(max(ratio, 0.0), self.rule.alpha))
        return Reinforce(self.rule, self.task, factors)


@dataclass
class Reinforce(MergePass):
    """Unique elements times λ_m, shared ones averaged."""

    rule: Overlap
    task: Task
    factors: list[float]

    def merge(self, block: Block, out: Tensor) -> None:
        import torch

        for part, here in parts_into(block, out):
            base = base_of(part, self.task.work)
            deltas = active_deltas(part, base, self.task.models, self.rule.epsilon)
            count = actives(part, deltas)
            scratch = part.scratch
            alone = torch.eq(count, 1, out=scratch.take("mask", count.numel(), self.task.work))
            total = scratch.take("total", count.numel(), self.task.work).zero_()
            for delta in deltas:
                total.add_(delta)
            total.div_(count.clamp_min_(1))
            for delta, factor in zip(deltas, self.factors, strict=True):
                if factor != 1.0:
                    total.add_(delta.mul_(alone), alpha=factor - 1)
            here.copy_(base.add_(total))
