"""Task arithmetic: a weighted sum of task vectors on the base (Ilharco et al., 2022)."""

import math

from ..algorithms.weighted_sum import LinearCombination, scaled, total_of
from ..method import BaseRole, merge_method


@merge_method(
    LinearCombination(task_vectors=True),
    reference="https://arxiv.org/abs/2212.04089",
    base=BaseRole.REQUIRED,
    models=(0, None),
)
def task_arithmetic(
    *, weight: list[float], normalize: bool = False, lambda_: float = 1.0
) -> list[float]:
    """Weighted sum of task vectors, added to the base.

    out = base + lambda · Σ w_m (x_m − base)

    weight: w_m; a negative weight removes what that model has learned.
    normalize: divide the sum by Σ w_m, unless that is 0 (within 1e-8).
    lambda: factor of the merged task vector.

    The result is one weighted sum, rounded once at the end, so that small differences survive.
    `density`, `rescale` and `int8_mask`, which mergekit accepts here, have no effect there.
    """
    if normalize and abs(total_of(weight)) >= 1e-8:
        weight = scaled(weight)
        lambda_ /= math.fsum(weight)
    return [lambda_ * w for w in weight]
