"""Drop at random by rank, rescale, elect signs."""

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
def della(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    epsilon: list[float] = EPSILON,
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m / Σ w_m over the models that agree with the elected sign.

    s_m keeps an element of x_m − b with a probability that grows with the rank r of its magnitude
    in its row of L: p = density − epsilon + 2 epsilon · r/(L−1), r = 0 … L−1. It must stay within
    0 and 1: the default epsilon of 0.15 needs 0.15 < density < 0.85 (or density 1: keep all).
    A row runs along axis 1; a vector is one row. Kernels [C, 1, K] of convolutions, with which
    mergekit stops, have rows along K; rows of one element are kept with p = density.
    Equal magnitudes have the same p, that of the rank in their middle (mergekit: an unstable sort).
    Draws depend on the seed (--seed), the tensor's name, the model's place and the element's index
    alone; mergekit's come from one global generator and differ.
    rescale (default) restores the L1 norm of x_m − b; normalize, sign and consensus_method are as
    in ties. int8_mask is accepted and has no effect.
    """
    keep = [ranked_chance(d, e) for d, e in zip(density, epsilon, strict=True)]
    return Vote(weight, keep, consensus_method, normalize, rescale, lambda_)
