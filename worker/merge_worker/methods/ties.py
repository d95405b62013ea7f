"""TIES-Merging: trim task vectors, elect signs, merge what agrees (Yadav et al., 2023)."""

from ..algorithms.sign_consensus import GeneralizedTaskArithmetic
from ..algorithms.sparsify import trim
from ..algorithms.task_vectors import task_vector_method
from ..method import per_model


@task_vector_method("https://arxiv.org/abs/2306.01708")
def ties(
    *,
    weight: list[float],
    density: list[float] = per_model(1.0),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    consensus_method: str = "sum",
    int8_mask: bool = False,
) -> GeneralizedTaskArithmetic:
    """Trim task vectors, elect a sign per element, average the models that agree.

    s_m = x_m − base, trimmed: the int(density · n) largest magnitudes are kept, the rest is 0
    out = base + lambda · Σ w_m s_m / Σ w_m, both sums over the models with the elected sign

    The elected sign of an element is that of Σ w_m s_m over all models, + if the sum is 0.
    A model whose s_m is 0 there neither votes nor counts in the divisor.

    weight: w_m; a negative weight turns the model's vote as well.
    density: fraction of the whole tensor to keep (of n elements, at least one); 1 trims nothing.
      The product density · n is rounded down in binary: 0.29 of 100 elements are 28. Of equal
      magnitudes at the threshold, the first in the tensor are kept, exactly as many as requested;
      in mergekit an unstable sort decides.
    normalize: divide by Σ w_m; false adds up what agrees, the default of dare_ties and
      breadcrumbs_ties.
    rescale: multiply s_m by ‖x_m − base‖₁/‖s_m‖₁, unless either norm is below 1e-7.
    lambda: factor of the merged task vector.
    consensus_method: sum, or count: elect the sign that more models have, each with one vote, as
      many PyTorch implementations do. If these also divide by the number of all models, use
      weights of 1/K and normalize: false. mergekit does not read this key.
    int8_mask: accepted without effect; it does not change mergekit's results either.
    """
    trims = [trim(d) for d in density]
    return GeneralizedTaskArithmetic(weight, trims, consensus_method, normalize, lambda_, rescale)
