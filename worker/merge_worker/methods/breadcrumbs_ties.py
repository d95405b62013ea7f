"""Model Breadcrumbs with the sign election of TIES (Davari, Belilovsky, 2023)."""

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import trim
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2312.06795")
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
    trims = [trim(d, g) for d, g in zip(density, gamma, strict=True)]
    return GeneralizedTaskArithmetic(weight, trims, consensus_method, normalize, lambda_, rescale)
