"""NDE: normalize, drop, erase; how LongCat-Flash-Thinking fused experts (Meituan, 2025)."""

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import drop_at_random
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2509.18883", experimental=True, balance=True)
def nde(
    *,
    weight: list[float] = per_model(1.0),
    density: list[float] = per_model(0.5),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
) -> GeneralizedTaskArithmetic:
    """Balance task vectors, drop elements at random, erase what goes against the majority.

    δ_m = (x_m − base) · L/‖x_m − base‖, with L the mean length of the task vectors of the tensor
    s_m = δ_m with each element kept with probability density_m, else 0; then rescaled
    out = base + lambda · Σ w_m s_m / Σ w_m, both sums over the models with the elected sign

    weight: w_m.
    density: probability of keeping an element.
    normalize: divide by Σ w_m of the models that agree; false adds up what agrees.
    rescale: restore the L1 norm of δ_m after the drop.
    lambda: factor of the merged task vector.
    consensus_method: sum, or count: as in ties.

    The report names the three steps and gives no formulas, densities or weights: these are those of
    dare_ties behind the modifier `balance`. Balancing makes a domain whose training moved the
    weights little as loud as the others, its noise too: a tensor in which one model has hardly
    changed is amplified to the mean. Task vectors that are 0 stay 0 and do not count in the mean.
    Masks depend only on the seed (--seed), the tensor's name, the model's position and the
    element's index.
    """
    drops = [drop_at_random(d) for d in density]
    return GeneralizedTaskArithmetic(weight, drops, consensus_method, normalize, lambda_, rescale)
