"""Weighted sum of task vectors on a base."""

from __future__ import annotations

import math

from ..algorithms.weighted_sum import Span
from ..method import BaseRole, merge_method


@merge_method(
    Span(deltas=True),
    reference="https://arxiv.org/abs/2212.04089",
    base=BaseRole.REQUIRED,
    models=(0, None),
)
def task_arithmetic(
    *, weight: list[float], normalize: bool = False, lambda_: float = 1.0
) -> list[float]:
    """out = base + lambda · Σ w_m (x_m - base), the sum divided by Σ w_m if `normalize`.

    A negative weight takes away what that model learnt. Weights that add up to 0 (within 1e-8)
    are not divided by. The result is one weighted sum with one rounding at its end, so that
    differences far below the size of the weights are not rounded on the way.

    `density`, `rescale` and `int8_mask`, which mergekit accepts here, never had an effect.
    """
    total = math.fsum(weight) if normalize else 1.0
    divisor = 1.0 if abs(total) < 1e-8 else total
    return [lambda_ * w / divisor for w in weight]
