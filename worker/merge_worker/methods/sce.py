"""Select by variance, calculate weights, erase minorities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..algorithms.order_statistics import READS, Threshold, order_statistics, parts, parts_into
from ..algorithms.sign_consensus import Shares, elect
from ..algorithms.sparsify import shrink
from ..algorithms.task_vectors import (
    SELECT,
    Deltas,
    Rule,
    Unchanged,
    base_of,
    deltas_of,
    numbers,
    run_sums,
)
from ..method import BaseRole, Block, MergePass, StatisticsPass, Task, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sce(Rule):
    select_topk: float
    min_energy: float

    @property
    def reads(self) -> int:
        return 2 + (1 + READS) * (self.select_topk < 1)

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        if not math.prod(task.shape) or self.select_topk <= 0:
            return Unchanged()
        return Energy(self, task, None) if self.select_topk >= 1 else Differing(self, task)


def variance(block: Block, task: Task) -> Tensor:
    """The population variance of the deltas over the models, in float64; exactly 0 if all equal.

    Of x_m − x_0, in which the base cancels.
    """
    count = block.tensors[0].numel()
    first, term, total, squares = (
        block.scratch.take(slot, count, "float64") for slot in ("base", "y0", "total", "sign")
    )
    first.view(block.tensors[0].shape).copy_(block.tensors[0])
    total.zero_()
    squares.zero_()
    for source in block.tensors[1 : task.models]:
        term.view(source.shape).copy_(source)
        total.add_(term.sub_(first))
        squares.addcmul_(term, term)
    total.mul_(1 / task.models)
    return squares.mul_(1 / task.models).addcmul_(total, total, value=-1).clamp_min_(0)


@dataclass
class Differing(StatisticsPass):
    """How many elements differ between the models: only those can be selected."""

    rule: Sce
    task: Task

    def collect(self, block: Block) -> int:
        import torch

        return sum(int(torch.count_nonzero(variance(p, self.task))) for p in parts(block))

    def next_pass(self, partials: Sequence[int]) -> StatisticsPass | MergePass:
        import torch

        # The product in float32, as in mergekit.
        selected = int(torch.tensor(sum(partials), dtype=torch.float32) * self.rule.select_topk)
        if selected == 0:
            return Unchanged()
        count = math.prod(self.task.shape)

        def then(found: list[list[Threshold]]) -> StatisticsPass | MergePass:
            return Energy(self.rule, self.task, found[0][0])

        def values(block: Block) -> list[Tensor]:
            return [variance(block, self.task)]

        return order_statistics(values, count, [[count - selected]], then)


def selected_deltas(
    block: Block, part: Block, task: Task, threshold: Threshold | None, edge: int
) -> tuple[Tensor, Deltas]:
    """Base and deltas of a part, those zero whose variance is not selected."""

    mask = None
    if threshold is not None:
        spread = variance(part, task)
        shrink(spread, threshold, block.start + edge - part.start, spread)
        mask = part.scratch.take("mask", spread.numel(), task.work).copy_(spread.sign_())
    base = base_of(part, task.work)
    deltas = deltas_of(part, base, range(task.models))
    if mask is not None:
        deltas.all.mul_(mask)
    return base, deltas


@dataclass
class Energy(StatisticsPass):
    """The mean square of every model's selected delta."""

    rule: Sce
    task: Task
    threshold: Threshold | None

    def collect(self, block: Block) -> list[list[float]]:
        sums: list[Tensor] = []
        edge = self.threshold.ties(block) if self.threshold else 0
        for part in parts(block):
            _, deltas = selected_deltas(block, part, self.task, self.threshold, edge)
            deltas.all.mul_(deltas.all)
            sums += run_sums(deltas)
        return numbers(sums)

    def next_pass(self, partials: Sequence[list[list[float]]]) -> MergePass:
        models = self.task.models
        count = math.prod(self.task.shape)
        q = [math.fsum(x for p in partials for x in p[m]) / count for m in range(models)]
        total = sum(q)
        uniform = abs(total) < self.rule.min_energy or total == 0
        shares = [1 / models if uniform else part / total for part in q]
        return Fuse(self.task, self.threshold, shares)


@dataclass
class Fuse(MergePass):
    task: Task
    threshold: Threshold | None
    shares: list[float]

    def merge(self, block: Block, out: Tensor) -> None:
        edge = self.threshold.ties(block) if self.threshold else 0
        for part, here in parts_into(block, out):
            base, deltas = selected_deltas(block, part, self.task, self.threshold, edge)
            total, divisor = elect(part, deltas, "sum", Shares(None, self.shares, self.shares))
            if divisor is not None:
                total.div_(divisor.clamp_min_(1e-6))
            here.copy_(base.add_(total))


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2408.07990"
)
def sce(*, select_topk: float = 1.0, min_energy: float = 1e-6, int8_mask: bool = False) -> Sce:
    """out = b + Σ c_m D_m / Σ c_m over the models that agree with the sign of Σ D_m.

    D_m is x_m − b where the models differ most: the share select_topk of the elements with a
    variance over the models that is not zero (select_topk 1, the default, takes all, those without
    variance as well). Elements of equal variance are taken in the order of the tensor.
    c_m is the model's share of the energy: q_m/Σ q with q_m the mean square of D_m. Where Σ q is
    below min_energy all c_m are equal. The default 1e-6 is mergekit's fixed number: deltas of usual
    fine-tunes (root mean square under 7e-4 for two models) fall below it, so that the weights of
    the paper are never used. min_energy: 0 gives the paper's method at any scale.
    There is no `weight`, and the vote is not weighted. int8_mask is accepted and has no effect.
    """
    return Sce(select_topk, min_energy)
