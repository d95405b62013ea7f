"""Drop outliers and noise, elect signs."""

from __future__ import annotations

from typing import Any

from ..algorithms.sign_consensus import Vote
from ..algorithms.sparsify import inner
from ..algorithms.task_vectors import DENSITY, SELECT
from ..method import BaseRole, merge_method

GAMMA: Any = 0.01


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2312.06795"
)
def breadcrumbs_ties(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    gamma: list[float] = GAMMA,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m over the models that agree with the elected sign.

    s_m drops the int(gamma · n) largest magnitudes of x_m − b and keeps the int(density · n) below
    them, as in breadcrumbs: where gamma > 1 − density, fewer outliers are dropped; density 1 keeps
    all. The sign elected is that of Σ w_m s_m, + if zero, as in ties (consensus_method: count: of
    Σ sign(w_m s_m)). Unlike ties, agreeing models are added: normalize: true takes their average.
    rescale restores the L1 norm of x_m − b. int8_mask is accepted and has no effect.
    """
    keep = [inner(d, g) for d, g in zip(density, gamma, strict=True)]
    return Vote(weight, keep, consensus_method, normalize, rescale, lambda_)
