"""SCE: select by variance, calculate weights, erase minority signs (FuseChat, Wan et al., 2024)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..algorithms.order_statistics import (
    READS,
    Threshold,
    held_bytes,
    order_statistics,
    parts,
    parts_into,
)
from ..algorithms.sign_consensus import disjoint_sum
from ..algorithms.sparsify import zero_below
from ..algorithms.task_vectors import (
    SUMS,
    CopyBase,
    Rule,
    TaskVectors,
    flat_base,
    run_sums,
    sums_by_model,
    task_vector_method,
    task_vectors,
)
from ..method import Block, MergePass, StatisticsPass, Task, Tensor


@task_vector_method("https://arxiv.org/abs/2408.07990")
def sce(*, select_topk: float = 1.0, min_energy: float = 1e-6, int8_mask: bool = False) -> Rule:
    """Select elements by variance, calculate weights from energy, erase minority signs.

    D_m = x_m − base where the variance over the models is among the largest, else 0
    c_m = q_m / Σ q, with q_m the mean square of D_m over the tensor
    out = base + Σ c_m D_m / Σ c_m, both sums over the models with the sign of Σ D_m

    select_topk: fraction to select of the elements whose variance is not 0; 1 selects all
      elements, those without variance as well. Of equal variances the first in the tensor are
      selected.
    min_energy: Σ q below which all c_m are equal. The default is mergekit's fixed number: task
      vectors of usual fine-tunes (root mean square under 7e-4 for two models) are below it, so
      that the weights of the paper are not used. 0 gives the paper's method at any scale.
    int8_mask: accepted without effect.

    There is no `weight`, and the vote on signs is not weighted.
    """
    return _Sce(select_topk, min_energy)


@dataclass(frozen=True)
class _Sce(Rule):
    select_topk: float
    min_energy: float

    @property
    def reads(self) -> int:
        return 2 + (1 + READS) * (self.select_topk < 1)

    def held_bytes(self, task: Task, block: int) -> int:
        count = math.prod(task.shape)
        selection = held_bytes(count, block, [1], "float64") if 0 < self.select_topk < 1 else 0
        return selection + SUMS * task.models * -(-count // block)

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        if self.select_topk <= 0:
            return CopyBase()
        if self.select_topk >= 1:
            return _Energy(self, task, None)
        return _CountVarying(self, task)


def variance(block: Block, task: Task) -> Tensor:
    """Return the population variance over the models, in float64; exactly 0 if all are equal.

    Computed from x_m − x_0, in which the base cancels.
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
class _CountVarying(StatisticsPass):
    """The pass that counts elements that differ between models: only these can be selected."""

    rule: _Sce
    task: Task

    def collect(self, block: Block) -> int:
        import torch

        return sum(int(torch.count_nonzero(variance(p, self.task))) for p in parts(block))

    def next_pass(self, partials: Sequence[int]) -> StatisticsPass | MergePass:
        import torch

        # The product in float32, as in mergekit.
        selected = int(torch.tensor(sum(partials), dtype=torch.float32) * self.rule.select_topk)
        if selected == 0:
            return CopyBase()
        count = math.prod(self.task.shape)
        return order_statistics(
            lambda block: [variance(block, self.task)],
            count,
            [[count - selected]],
            lambda thresholds: _Energy(self.rule, self.task, thresholds[0][0]),
        )


def selected_vectors(
    block: Block, part: Block, task: Task, threshold: Threshold | None, ties: int
) -> tuple[Tensor, TaskVectors]:
    """Return base and task vectors of a part, zero where the variance is not selected.

    `ties` is the number of leading elements of the block that are selected if their variance equals
    the threshold.
    """
    mask = None
    if threshold is not None:
        spread = variance(part, task)
        zero_below(spread, threshold, block.start + ties - part.start, spread)
        mask = part.scratch.take("mask", spread.numel(), task.work).copy_(spread.sign_())
    base = flat_base(part, task.work)
    vectors = task_vectors(part, base, range(task.models))
    if mask is not None:
        vectors.all.mul_(mask)
    return base, vectors


@dataclass
class _Energy(StatisticsPass):
    """The pass that computes q_m, the mean square of every model's selected task vector."""

    rule: _Sce
    task: Task
    threshold: Threshold | None

    def collect(self, block: Block) -> list[float]:
        sums: list[Tensor] = []
        ties = self.threshold.leading_ties(block) if self.threshold else 0
        for part in parts(block):
            _, vectors = selected_vectors(block, part, self.task, self.threshold, ties)
            vectors.all.mul_(vectors.all)
            sums += run_sums(vectors)
        return sums_by_model(sums)

    def next_pass(self, partials: Sequence[list[float]]) -> MergePass:
        models = self.task.models
        count = math.prod(self.task.shape)
        q = [math.fsum(p[m] for p in partials) / count for m in range(models)]
        total = sum(q)
        uniform = abs(total) < self.rule.min_energy or total == 0
        weights = [1 / models if uniform else energy / total for energy in q]
        return _Fuse(self.task, self.threshold, weights)


@dataclass
class _Fuse(MergePass):
    """The merge pass, with the weights c_m."""

    task: Task
    threshold: Threshold | None
    weights: list[float]

    def merge(self, block: Block, out: Tensor) -> None:
        ties = self.threshold.leading_ties(block) if self.threshold else 0
        for part, target in parts_into(block, out):
            base, vectors = selected_vectors(block, part, self.task, self.threshold, ties)
            total, divisor = disjoint_sum(part, vectors, "sum", None, self.weights, self.weights)
            if divisor is not None:
                total.div_(divisor.clamp_min_(1e-6))
            target.copy_(base.add_(total))
