"""Task arithmetic without what serves too few tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..algorithms.order_statistics import parts_into
from ..algorithms.task_vectors import (
    DENSITY,
    SELECT,
    Rule,
    Unchanged,
    base_of,
    deltas_of,
    keep_agreed,
)
from ..method import BaseRole, Block, MergePass, Task, merge_method

if TYPE_CHECKING:
    from torch import Tensor


WEIGHT = DENSITY


@dataclass(frozen=True)
class Agreed(Rule):
    weight: Sequence[float]
    scale: float
    mask_lambda: float
    least: int

    def begin(self, task: Task) -> MergePass:
        return Sum(self, task) if math.prod(task.shape) else Unchanged()


@dataclass
class Sum(MergePass):
    rule: Agreed
    task: Task

    def merge(self, block: Block, out: Tensor) -> None:
        for part, here in parts_into(block, out):
            base = base_of(part, self.task.work)
            total = part.scratch.take("total", base.numel(), self.task.work).zero_()
            deltas = deltas_of(part, base, range(self.task.models)).each
            for delta, weight in zip(deltas, self.rule.weight, strict=True):
                if weight != 1.0:
                    delta.mul_(weight)
                total.add_(delta)
            keep_agreed(part, total, deltas, self.rule.mask_lambda, self.rule.least)
            here.copy_(base.add_(total, alpha=self.rule.scale))


@merge_method(
    SELECT,
    base=BaseRole.REQUIRED,
    models=(0, None),
    reference="https://arxiv.org/abs/2405.07813",
    experimental=True,
)
def consensus_ta(
    *,
    weight: list[float] = WEIGHT,
    lambda_: float = 1.0,
    tall_mask_lambda: float = 0.4,
    consensus_threshold: int = 2,
) -> Agreed:
    """out = b + lambda · τ where at least consensus_threshold models need it; τ = Σ w_m (x_m − b).

    A model needs an element if |τ_m| > tall_mask_lambda · |τ − τ_m|, τ_m = w_m (x_m − b): a larger
    tall_mask_lambda keeps less. Elements that serve one model (selfish) or none (catastrophic) go
    back to the base. consensus_threshold 0 is task arithmetic; more than the number of models gives
    the base.
    The paper chooses tall_mask_lambda from 0.2 to 0.6 and lambda (0.3 for 8 to 20 vision models) on
    validation data; the defaults are a compromise. Its weights are all 1. Evidence is from CLIP and
    T5; with two models and consensus_threshold 2 both must need an element.
    """
    return Agreed(weight, lambda_, tall_mask_lambda, consensus_threshold)
