"""DARE with the sign election of TIES (Yu et al., 2023)."""

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import drop_at_random
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2311.03099")
def dare_ties(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Drop elements of task vectors at random, rescale, elect signs, add what agrees.

    s_m = x_m − base, each element kept with probability density, else 0; then rescaled
    out = base + lambda · Σ w_m s_m, over the models with the elected sign

    The elected sign of an element is that of Σ w_m s_m, + if the sum is 0, as in ties.

    weight: w_m.
    density: probability of keeping an element; 1 drops and rescales nothing. Masks depend only on
      the seed (--seed), the tensor's name, the model's position and the element's index: they are
      the same on every device, with any number of threads or ranks, and after resuming. mergekit
      draws from one global generator, so its masks differ.
    normalize: divide by the weights of the models that agree, as in ties.
    rescale: multiply s_m by ‖x_m − base‖₁/‖s_m‖₁ of the tensor, as mergekit does (the paper
      multiplies by 1/density; the two agree in expectation). The norms are exact; mergekit takes
      them in the tensor's dtype (up to 0.4 % off in bfloat16, Inf in float16).
    lambda: factor of the merged task vector.
    consensus_method: sum, or count: the sign of Σ sign(w_m s_m).
    int8_mask: accepted without effect.
    """
    drops = [drop_at_random(d) for d in density]
    return GeneralizedTaskArithmetic(weight, drops, consensus_method, normalize, lambda_, rescale)
