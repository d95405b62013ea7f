"""Drop at random, rescale, add."""

from __future__ import annotations

from ..algorithms.sign_consensus import Vote
from ..algorithms.sparsify import chance
from ..algorithms.task_vectors import DENSITY, SELECT
from ..method import BaseRole, merge_method


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2311.03099"
)
def dare_linear(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m: dare_ties without the vote.

    s_m keeps each element of x_m − b with the probability `density`, drawn from the seed (--seed),
    the tensor's name, the model's place and the element's index alone. mergekit's masks differ:
    they come from one global generator.
    rescale (default) multiplies s_m by ‖x_m − b‖₁/‖s_m‖₁ of the tensor, as mergekit does: not by
    1/density as in the paper; the two agree in expectation. density 1 drops and rescales nothing.
    normalize: true divides by Σ w_m of all models (by 1 if |Σ w_m| < 1e-8).
    int8_mask is accepted and has no effect.
    """
    return Vote(weight, [chance(d) for d in density], None, normalize, rescale, lambda_)
