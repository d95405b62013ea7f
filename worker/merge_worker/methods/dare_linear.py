"""DARE: drop elements of task vectors at random, rescale, add (Yu et al., 2023)."""

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import drop_at_random
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2311.03099")
def dare_linear(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Drop elements of task vectors at random, rescale, add.

    s_m = x_m − base, each element kept with probability density, else 0; then rescaled
    out = base + lambda · Σ w_m s_m

    weight: w_m.
    density: probability of keeping an element; 1 drops and rescales nothing. Masks and rescaling
      are those of dare_ties.
    normalize: divide by Σ w_m of all models, unless |Σ w_m| < 1e-8.
    rescale: multiply s_m by ‖x_m − base‖₁/‖s_m‖₁ of the tensor, as mergekit does (the paper
      multiplies by 1/density; the two agree in expectation).
    lambda: factor of the merged task vector.
    int8_mask: accepted without effect.
    """
    drops = [drop_at_random(d) for d in density]
    return GeneralizedTaskArithmetic(weight, drops, None, normalize, lambda_, rescale)
