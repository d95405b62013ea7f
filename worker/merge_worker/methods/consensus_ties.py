"""Consensus TIES: only elements that enough models need (Wang et al., 2024)."""

from dataclasses import dataclass

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic, MergeTaskVectors
from ..algorithms.sparsify import Mask, trim
from ..algorithms.task_vectors import (
    Rule,
    TaskVectors,
    apply_consensus_mask,
    task_vector_method,
    task_vectors,
)
from ..method import Block, MergePass, Task, Tensor, per_model


@task_vector_method("https://arxiv.org/abs/2405.07813", experimental=True)
def consensus_ties(
    *,
    weight: list[float] = per_model(1.0),
    density: list[float] = per_model(0.2),
    normalize: bool = False,
    lambda_: float = 1.0,
    tall_mask_lambda: float = 0.4,
    consensus_threshold: int = 2,
) -> Rule:
    """TIES, limited to the elements that enough models need (consensus merging).

    τ = sum (with normalize, mean) of the trimmed w_m (x_m − base) with the elected sign; see ties
    out = base + lambda · τ where at least consensus_threshold models need the element, else base
    A model needs an element if |τ_m| > tall_mask_lambda · |τ − τ_m| (its TALL mask), with
    τ_m = w_m (x_m − base), untrimmed, and without w_m if normalize.

    weight, density: as in ties; the default density is that of the TIES paper.
    normalize: average what agrees instead of adding it up.
    lambda: factor of the merged task vector; both papers choose it on validation data.
    tall_mask_lambda, consensus_threshold: as in consensus_ta.
    """
    return _ConsensusTies(
        weight,
        [trim(d) for d in density],
        "sum",
        normalize,
        lambda_,
        mask_lambda=tall_mask_lambda,
        threshold=consensus_threshold,
    )


@dataclass(frozen=True, kw_only=True)
class _ConsensusTies(GeneralizedTaskArithmetic):
    mask_lambda: float
    threshold: int

    def merge_pass(
        self, task: Task, masks: dict[int, Mask], rescale: dict[int, float]
    ) -> MergePass:
        return _MergeWithConsensus(self, task, masks)


class _MergeWithConsensus(MergeTaskVectors):
    """The merge pass of ties, with TALL masks computed from the untrimmed task vectors."""

    def __init__(self, rule: _ConsensusTies, task: Task, masks: dict[int, Mask]) -> None:
        super().__init__(rule, task.work, masks, {})
        self.consensus_rule = rule
        self.scale = rule.lambda_

    def combine(self, part: Block, base: Tensor, sparse: TaskVectors) -> Tensor:
        import torch

        rule = self.consensus_rule
        merged = part.scratch.take("total", base.numel(), self.work)
        torch.mul(super().combine(part, base, sparse), self.unit, out=merged)
        vectors = task_vectors(part, base, range(len(rule.weight))).by_model
        if not rule.normalize:
            for vector, weight in zip(vectors, rule.weight, strict=True):
                vector.mul_(weight)
        return apply_consensus_mask(part, merged, vectors, rule.mask_lambda, rule.threshold)
