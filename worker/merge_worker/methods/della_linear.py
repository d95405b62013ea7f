"""Drop at random by rank, rescale, add."""

from __future__ import annotations

from typing import Any

from ..algorithms.magprune import ranked_chance
from ..algorithms.sign_consensus import Vote
from ..algorithms.task_vectors import DENSITY, SELECT
from ..method import BaseRole, merge_method

EPSILON: Any = 0.15


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2406.11617"
)
def della_linear(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    epsilon: list[float] = EPSILON,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m: della without the vote.

    s_m keeps an element of x_m − b with a probability that grows with the rank of its magnitude in
    its row, from density − epsilon to density + epsilon; both must be within 0 and 1, so that the
    default epsilon of 0.15 needs 0.15 < density < 0.85 (or density 1: keep all). Rows, ties and
    draws are as in della.
    rescale (default) restores the L1 norm of x_m − b. normalize: true divides by Σ w_m of all
    models (by 1 if |Σ w_m| < 1e-8). int8_mask is accepted and has no effect.
    """
    keep = [ranked_chance(d, e) for d, e in zip(density, epsilon, strict=True)]
    return Vote(weight, keep, None, normalize, rescale, lambda_)
