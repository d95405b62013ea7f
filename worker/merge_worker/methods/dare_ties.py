"""Drop at random, rescale, elect signs."""

from __future__ import annotations

from ..algorithms.sign_consensus import Vote
from ..algorithms.sparsify import chance
from ..algorithms.task_vectors import DENSITY, SELECT
from ..method import BaseRole, merge_method


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2311.03099"
)
def dare_ties(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m over the models that agree with the elected sign.

    s_m keeps each element of x_m − b with the probability `density`, drawn from the seed (--seed),
    the tensor's name, the model's place and the element's index alone: the same on every device,
    with any number of threads or ranks, and after a resumption. mergekit draws from one global
    generator, so its masks differ from these and depend on the order of its work.

    rescale (default) multiplies s_m by ‖x_m − b‖₁/‖s_m‖₁ of the tensor, as mergekit does: not by
    1/density as in the paper; the two agree in expectation. mergekit takes these norms in the dtype
    of the tensor (up to 0.4 % off in bfloat16, Inf in float16); here they are exact. density 1
    drops nothing and rescales nothing.
    The sign elected is that of Σ w_m s_m, + if zero (consensus_method: count: of Σ sign(w_m s_m)).
    normalize: true divides by the weights of the models that agree, as in ties.
    int8_mask is accepted and has no effect.
    """
    keep = [chance(d) for d in density]
    return Vote(weight, keep, consensus_method, normalize, rescale, lambda_)
