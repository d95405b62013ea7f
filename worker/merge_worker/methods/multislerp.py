"""MultiSLERP: the mean direction of any number of models (Goddard)."""

import math

from ..algorithms.gram import Lengths
from ..algorithms.weighted_sum import LinearCombination, scaled
from ..method import BaseRole, merge_method


@merge_method(
    LinearCombination(task_vectors=True, gram=True, lengths=True),
    reference="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea/",
    base=BaseRole.OPTIONAL,
)
def multislerp(
    gram: list[list[float]],
    lengths_of: Lengths,
    *,
    weight: list[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> list[float]:
    """Weighted mean direction of any number of models, with their weighted mean length.

    out = base + μ/‖μ‖ · Σ w_m ‖δ_m‖, with μ = Σ w_m δ_m/‖δ_m‖
    δ_m = x_m − base, or x_m if the recipe has no base

    weight: w_m.
    normalize_weights: divide the weights by their sum; a sum of 0 is an error (mergekit writes
      NaN).
    eps: length of μ below which directions cancel; it is also added to each ‖δ_m‖. Two models
      then give their weighted sum; more are an error, unless no model differs from the base
      (mergekit fails, here the result is the base). Where terms nearly cancel, ‖μ‖ is computed from
      their sum in float64, whatever the dtypes.

    Two models give the same as `slerp` only with equal weights: (2, 0) and (0, 4) weighted 1 : 3
    give (1.107, 3.320), slerp at t = 0.75 gives (0.765, 3.696). One model is copied. The tangent
    step in mergekit's code is left out: it is 0 up to rounding, since μ is already the mean.
    """
    if eps < 0:
        raise ValueError(f"eps must be 0 or more (a length), got {eps:g}")
    if len(weight) == 1:
        return [1.0]
    w = weight
    if normalize_weights:
        weight = scaled(weight)
        total = math.fsum(weight)
        if total == 0:
            raise ZeroDivisionError(
                "the weights add up to 0: set normalize_weights: false, or others"
            )
        w = [x / total for x in weight]
    lengths = [math.sqrt(gram[i][i]) for i in range(len(w))]
    a = [x / (length + eps) if length else 0.0 for x, length in zip(w, lengths, strict=True)]
    mean_length = lengths_of(a)
    if mean_length < eps or mean_length == 0:
        if len(w) == 2 or not any(lengths):
            return w
        raise ValueError("multislerp: the directions of the models cancel, so they have no mean")
    size = math.fsum(x * length for x, length in zip(w, lengths, strict=True))
    return [x / mean_length * math.cos(eps) * size for x in a]
