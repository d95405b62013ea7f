"""Drop outliers and noise, add."""

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
def breadcrumbs(
    *,
    weight: list[float],
    density: list[float] = DENSITY,
    gamma: list[float] = GAMMA,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> Vote:
    """out = b + lambda · Σ w_m s_m with outliers and noise dropped from s_m.

    s_m drops the int(gamma · n) largest magnitudes of x_m − b and keeps the int(density · n) below
    them, over the whole tensor. density comes first: where gamma > 1 − density, fewer outliers are
    dropped. density 1 (the default) keeps all of them, whatever gamma says. Releases of mergekit
    before 0.1 dropped the whole tensor if int(gamma · n) was 0 (fewer than 100 elements).
    Elements of equal magnitude at an edge are taken in the order of the tensor.
    normalize: true divides by Σ w_m; rescale restores the L1 norm of x_m − b.
    int8_mask is accepted and has no effect.
    """
    keep = [inner(d, g) for d, g in zip(density, gamma, strict=True)]
    return Vote(weight, keep, None, normalize, rescale, lambda_)
