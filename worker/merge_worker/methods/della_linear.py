"""DELLA without sign election: MagPrune, add (Deep et al., 2024)."""

from ..algorithms.magprune import magprune
from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2406.11617")
def della_linear(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    epsilon: list[float] = per_model(0.15),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Drop elements of task vectors at random, small ones more often; rescale, add.

    s_m = x_m − base, each element kept with a probability from density − epsilon (the smallest of
          its row) to density + epsilon (the largest), else 0; then rescaled
    out = base + lambda · Σ w_m s_m

    weight: w_m.
    density: mean probability of keeping an element; 1 keeps all.
    epsilon: spread of the probability, which must stay between 0 and 1: the default 0.15 requires
      0.15 < density < 0.85 (or density 1). Rows, ties and masks are those of della.
    normalize: divide by Σ w_m of all models, unless |Σ w_m| < 1e-8.
    rescale: restore the L1 norm of x_m − base.
    lambda: factor of the merged task vector.
    int8_mask: accepted without effect.
    """
    drops = [magprune(d, e) for d, e in zip(density, epsilon, strict=True)]
    return GeneralizedTaskArithmetic(weight, drops, None, normalize, lambda_, rescale)
