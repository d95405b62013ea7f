"""The rule of the RAM methods: changes by one model alone are kept, shared changes are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..method import Block, MergePass, StatisticsPass, Task, Tensor
from .order_statistics import parts, parts_into
from .rank_search import dtype_name
from .task_vectors import Rule, flat_base, task_vectors


@dataclass(frozen=True)
class RamRule(Rule):
    """The rule with λ_m = 1 + r · clamp(shared/unique, 0, alpha) on unique changes of model m.

    With r = 0 (method `ram`) every λ_m is 1.
    """

    epsilon: float
    r: float = 0.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be 0 or more (a magnitude), got {self.epsilon:g}")

    @property
    def reads(self) -> int:
        return 1 + (self.r != 0)

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        return CountChanges(self, task) if self.r else MergeChanges(self, task, [1.0] * task.models)


def changes(part: Block, base: Tensor, models: int, epsilon: float) -> tuple[Tensor, ...]:
    """Return the task vectors of all models, zero where |δ| ≤ epsilon."""
    import torch

    vectors = task_vectors(part, base, range(models))
    torch.hardshrink(vectors.all, epsilon, out=vectors.all)
    return vectors.by_model


def change_counts(part: Block, deltas: Sequence[Tensor]) -> Tensor:
    """Return by how many models each element was changed."""
    import torch

    work = dtype_name(deltas[0].dtype)
    count = part.scratch.take("divisor", deltas[0].numel(), work).zero_()
    term = part.scratch.take("mask", count.numel(), work)
    for delta in deltas:
        count.add_(torch.ne(delta, 0, out=term))
    return count


@dataclass
class CountChanges(StatisticsPass):
    """The pass that counts, for every model, the elements it changed with others and alone."""

    rule: RamRule
    task: Task

    def collect(self, block: Block) -> list[tuple[int, int]]:
        """Return (shared, unique) of every model."""
        import torch

        counts = [(0, 0)] * self.task.models
        for part in parts(block):
            base = flat_base(part, self.task.work)
            deltas = changes(part, base, self.task.models, self.rule.epsilon)
            count = change_counts(part, deltas)
            alone = torch.eq(count, 1, out=base)
            for m, delta in enumerate(deltas):
                changed = torch.ne(delta, 0, out=delta)
                unique = int(torch.mul(changed, alone, out=count).sum())
                counts[m] = (counts[m][0] + int(changed.sum()) - unique, counts[m][1] + unique)
        return counts

    def next_pass(self, partials: Sequence[list[tuple[int, int]]]) -> MergePass:
        factors = []
        for m in range(self.task.models):
            shared, unique = (sum(p[m][i] for p in partials) for i in (0, 1))
            # epsilon in place of a count of 0, as in mergekit; 0/0 means nothing shared.
            alone = max(unique, self.rule.epsilon)
            ratio = (shared / alone if alone else math.inf) if shared else 0.0
            factors.append(1 + self.rule.r * min(max(ratio, 0.0), self.rule.alpha))
        return MergeChanges(self.rule, self.task, factors)


@dataclass
class MergeChanges(MergePass):
    """The merge pass: unique changes times λ_m (`factors`), shared changes averaged."""

    rule: RamRule
    task: Task
    factors: list[float]

    def merge(self, block: Block, out: Tensor) -> None:
        import torch

        for part, target in parts_into(block, out):
            base = flat_base(part, self.task.work)
            deltas = changes(part, base, self.task.models, self.rule.epsilon)
            count = change_counts(part, deltas)
            scratch = part.scratch
            alone = torch.eq(count, 1, out=scratch.take("mask", count.numel(), self.task.work))
            total = scratch.take("total", count.numel(), self.task.work).zero_()
            for delta in deltas:
                total.add_(delta)
            total.div_(count.clamp_min_(1))
            for delta, factor in zip(deltas, self.factors, strict=True):
                if factor != 1.0:
                    total.add_(delta.mul_(alone), alpha=factor - 1)
            target.copy_(base.add_(total))
