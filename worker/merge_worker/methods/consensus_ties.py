"""TIES without what serves too few tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..algorithms.sign_consensus import Combine, Vote
from ..algorithms.sparsify import Mask, largest
from ..algorithms.task_vectors import SELECT, Deltas, deltas_of, keep_agreed
from ..method import BaseRole, Block, MergePass, Task, merge_method

if TYPE_CHECKING:
    from torch import Tensor


DENSITY: Any = 0.2
WEIGHT: Any = 1.0


@dataclass(frozen=True)
class AgreedVote(Vote):
    mask_lambda: float = 0.4
    least: int = 2

    def final(self, task: Task, masks: dict[int, Mask], factors: dict[int, float]) -> MergePass:
        return AgreedCombine(self, task, masks)


class AgreedCombine(Combine):
    """The elected sum, masked by what all of the deltas, untrimmed, say to it."""

    def __init__(self, rule: AgreedVote, task: Task, masks: dict[int, Mask]) -> None:
        super().__init__(rule, task.work, masks, {m: rule.weight[m] for m in masks})
        self.agreed = rule
        self.scale = rule.scale

    def combine(self, part: Block, base: Tensor, kept: Deltas) -> Tensor:
        import torch

        merged = part.scratch.take("total", base.numel(), self.work)
        torch.mul(super().combine(part, base, kept), self.unit, out=merged)
        deltas = deltas_of(part, base, range(len(self.agreed.weight))).each
        if not self.agreed.normalize:
            for delta, weight in zip(deltas, self.agreed.weight, strict=True):
                delta.mul_(weight)
        return keep_agreed(part, merged, deltas, self.agreed.mask_lambda, self.agreed.least)


@merge_method(
    SELECT,
    base=BaseRole.REQUIRED,
    models=(0, None),
    reference="https://arxiv.org/abs/2405.07813",
    experimental=True,
)
def consensus_ties(
    *,
    weight: list[float] = WEIGHT,
    density: list[float] = DENSITY,
    normalize: bool = False,
    lambda_: float = 1.0,
    tall_mask_lambda: float = 0.4,
    consensus_threshold: int = 2,
) -> AgreedVote:
    """out = b + lambda · τ where at least consensus_threshold models need it; τ is that of ties.

    τ is the sum (with normalize the mean) of the trimmed deltas that agree with the elected sign;
    see ties for weight and density, whose default here is the 0.2 of that paper. A model needs an
    element if |τ_m| > tall_mask_lambda · |τ − τ_m|, with τ_m = w_m (x_m − b) untrimmed (without w_m
    if normalize). See consensus_ta for the two parameters of the mask; both papers choose lambda on
    validation data.
    """
    keep = [largest(d) for d in density]
    return AgreedVote(
        weight, keep, "sum", normalize, False, lambda_, tall_mask_lambda, consensus_threshold
    )
