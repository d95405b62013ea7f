"""Consensus task arithmetic: only elements that enough models need (Wang et al., 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..algorithms.order_statistics import parts_into
from ..algorithms.task_vectors import (
    Rule,
    apply_consensus_mask,
    flat_base,
    task_vector_method,
    task_vectors,
)
from ..method import Block, MergePass, Task, Tensor, per_model


@task_vector_method("https://arxiv.org/abs/2405.07813", experimental=True)
def consensus_ta(
    *,
    weight: list[float] = per_model(1.0),
    lambda_: float = 1.0,
    tall_mask_lambda: float = 0.4,
    consensus_threshold: int = 2,
) -> Rule:
    """Task arithmetic, limited to the elements that enough models need (consensus merging).

    τ = Σ τ_m, with τ_m = w_m (x_m − base)
    out = base + lambda · τ where at least consensus_threshold models need the element, else base
    A model needs an element if |τ_m| > tall_mask_lambda · |τ − τ_m| (its TALL mask).

    weight: w_m; all 1 in the paper.
    lambda: factor of the merged task vector; the paper chooses it on validation data (0.3 for 8 to
      20 vision models).
    tall_mask_lambda: a larger value keeps fewer elements; the paper chooses from 0.2 to 0.6 on
      validation data, and the default is a compromise.
    consensus_threshold: with 2, elements that one model (selfish) or none (catastrophic) needs go
      back to the base; with two models both must need an element. 0 is task arithmetic; more than
      the number of models gives the base.

    Published results are of CLIP and T5.
    """
    return _ConsensusTaskArithmetic(weight, lambda_, tall_mask_lambda, consensus_threshold)


@dataclass(frozen=True)
class _ConsensusTaskArithmetic(Rule):
    weight: Sequence[float]
    lambda_: float
    mask_lambda: float
    threshold: int

    def begin(self, task: Task) -> MergePass:
        return _MergeWithConsensus(self, task)


@dataclass
class _MergeWithConsensus(MergePass):
    rule: _ConsensusTaskArithmetic
    task: Task

    def merge(self, block: Block, out: Tensor) -> None:
        rule = self.rule
        for part, target in parts_into(block, out):
            base = flat_base(part, self.task.work)
            total = part.scratch.take("total", base.numel(), self.task.work).zero_()
            vectors = task_vectors(part, base, range(self.task.models)).by_model
            for vector, weight in zip(vectors, rule.weight, strict=True):
                if weight != 1.0:
                    vector.mul_(weight)
                total.add_(vector)
            apply_consensus_mask(part, total, vectors, rule.mask_lambda, rule.threshold)
            target.copy_(base.add_(total, alpha=rule.lambda_))
