"""Model Breadcrumbs with the sign election of TIES (Davari, Belilovsky, 2023)."""

from __future__ import annotations

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import trim_tails
from ..algorithms.task_vectors import TASK_VECTORS
from ..method import BaseRole, merge_method, per_model


@merge_method(
    TASK_VECTORS,
    reference="https://arxiv.org/abs/2312.06795",
    base=BaseRole.REQUIRED,
    models=(0, None),
)
def breadcrumbs_ties(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    gamma: list[float] = per_model(0.01),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Drop the largest and the smallest elements of task vectors, elect signs, add what agrees.

    s_m = x_m − base without outliers and noise, as in breadcrumbs
    out = base + lambda · Σ w_m s_m, over the models with the elected sign

    The elected sign of an element is that of Σ w_m s_m, + if the sum is 0, as in ties.

    weight: w_m.
    density: fraction of elements to keep; 1 keeps all of them, whatever gamma is.
    gamma: fraction of outliers to drop; fewer if gamma > 1 − density.
    normalize: divide by the weights of the models that agree; unlike ties, the default adds.
    rescale: restore the L1 norm of x_m − base.
    lambda: factor of the merged task vector.
    consensus_method: sum, or count: the sign of Σ sign(w_m s_m).
    int8_mask: accepted without effect.
    """
    return GeneralizedTaskArithmetic(
        weight=weight,
        sparsifiers=[trim_tails(d, g) for d, g in zip(density, gamma, strict=True)],
        consensus=consensus_method,
        normalize=normalize,
        rescale=rescale,
        lambda_=lambda_,
    )
