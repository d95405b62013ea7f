"""DELLA: MagPrune, sign election, merge (Deep et al., 2024)."""

from ..algorithms.magprune import magprune
from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2406.11617")
def della(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    epsilon: list[float] = per_model(0.15),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Drop elements of task vectors at random, small ones more often; elect signs, average.

    s_m = x_m − base, each element kept with probability p, else 0; then rescaled
    p = density − epsilon + 2 epsilon · r/(L−1), with r = 0 … L−1 the rank of the magnitude in its
        row of L elements (MagPrune)
    out = base + lambda · Σ w_m s_m / Σ w_m, both sums over the models with the elected sign

    weight: w_m.
    density: mean probability of keeping an element; 1 keeps all.
    epsilon: spread of the probability. p must stay between 0 and 1: the default 0.15 requires
      0.15 < density < 0.85 (or density 1).
    normalize, consensus_method: as in ties.
    rescale: restore the L1 norm of x_m − base.
    lambda: factor of the merged task vector.
    int8_mask: accepted without effect.

    A row runs along axis 1; a vector is one row. Convolution kernels [C, 1, K], with which mergekit
    fails, have rows along K; in rows of one element p = density. Equal magnitudes have the same p,
    that of the middle of their ranks (in mergekit an unstable sort decides).
    Masks depend only on the seed (--seed), the tensor's name, the model's position and the
    element's index; mergekit draws from one global generator, so its masks differ.
    """
    drops = [magprune(d, e) for d, e in zip(density, epsilon, strict=True)]
    return GeneralizedTaskArithmetic(weight, drops, consensus_method, normalize, lambda_, rescale)
