"""Trim, elect signs, merge."""

from __future__ import annotations

from ..algorithms.sign_consensus import Vote
from ..algorithms.sparsify import largest
from ..algorithms.task_vectors import DENSITY, SELECT
from ..method import BaseRole, merge_method


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2306.01708"
)
def ties(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m / Σ w_m over the models that agree with the elected sign.

    s_m is the largest int(density · n) magnitudes of x_m − b over the whole tensor (at least one),
    the rest zero. The sign of an element is that of Σ w_m s_m, + where the sum is zero; models that
    dropped the element neither vote nor count in the divisor. A negative weight turns the vote of
    its model.

    density 1 (the default) trims nothing. The product density · n is cut in binary: 0.29 of 100
    elements are 28. Elements of equal magnitude at the edge are kept in the order of the tensor,
    exactly as many as asked for; in mergekit an unstable sort decides.
    normalize: false adds what agrees, as dare_ties and breadcrumbs_ties do by default.
    rescale multiplies s_m by ‖x_m − b‖₁/‖s_m‖₁; not if either is below 1e-7.
    consensus_method: count elects by the number of models on each side, as many PyTorch snippets
    do; there every vote is ±1. Such snippets often divide by the number of all models: use weights
    of 1/K and normalize: false for that. mergekit accepts no such key in a recipe.
    int8_mask is accepted and has no effect; it has none on mergekit's results either.
    """
    keep = [largest(d) for d in density]
    return Vote(weight, keep, consensus_method, normalize, rescale, lambda_)
