"""Model Breadcrumbs: task vectors without outliers and noise, added (Davari, Belilovsky, 2023)."""

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import trim
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2312.06795")
def breadcrumbs(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    gamma: list[float] = per_model(0.01),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Drop the largest and the smallest elements of task vectors, add the rest.

    s_m = x_m − base without its int(gamma · n) largest magnitudes; of the others the
          int(density · n) largest are kept, over the whole tensor of n elements
    out = base + lambda · Σ w_m s_m

    weight: w_m.
    density: fraction of elements to keep; 1 keeps all of them, whatever gamma is.
    gamma: fraction of outliers to drop; fewer if gamma > 1 − density. Releases of mergekit before
      0.1 dropped the whole tensor if int(gamma · n) was 0 (fewer than 100 elements).
    normalize: divide by Σ w_m.
    rescale: restore the L1 norm of x_m − base.
    lambda: factor of the merged task vector.
    int8_mask: accepted without effect.

    Of equal magnitudes at a threshold, the first in the tensor count as the larger ones.
    """
    trims = [trim(d, g) for d, g in zip(density, gamma, strict=True)]
    return GeneralizedTaskArithmetic(weight, trims, None, normalize, lambda_, rescale)
