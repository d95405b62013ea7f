"""Weighted mean direction of any number of models, with their weighted mean length."""

from __future__ import annotations

import math

from ..algorithms.weighted_sum import Span
from ..method import BaseRole, merge_method


@merge_method(
    Span(deltas=True, gram=True),
    reference="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea/",
    base=BaseRole.OPTIONAL,
)
def multislerp(
    gram: list[list[float]],
    *,
    weight: list[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> list[float]:
    """out = base + μ/‖μ‖ · Σ w_m ‖δ_m‖ with μ = Σ w_m δ_m/‖δ_m‖.

    δ is the difference from the base, or the model itself where there is no base. Weights are
    divided by their sum if `normalize_weights`. The tangential step of mergekit's code is left
    out: it is zero but for rounding, since μ already is the mean direction.

    Traps: for two models this is `slerp` only with equal weights: (2,0) and (0,4) weighted 1:3
    give (1.107, 3.320), slerp at t = 0.75 gives (0.765, 3.696). Directions that cancel
    (‖μ‖ < `eps`) give the weighted sum of two models, and are an error for more, unless no model
    differs from the base: mergekit fails there, this gives the base. Weights that add up to 0 with
    `normalize_weights` are an error, where mergekit writes NaN. One model is copied.
    """
    if len(weight) == 1:
        return [1.0]
    total = math.fsum(weight) if normalize_weights else 1.0
    if total == 0:
        raise ZeroDivisionError("the weights add up to 0: set normalize_weights: false, or others")
    w = [x / total for x in weight]
    lengths = [math.sqrt(gram[i][i]) for i in range(len(w))]
    a = [x / (length + eps) for x, length in zip(w, lengths, strict=True)]
    mean = math.sqrt(max(0.0, _form(a, gram)))
    if mean < eps:
        if len(w) == 2 or not any(lengths):
            return w
        raise ValueError("multislerp: the directions of the models cancel, none is their mean")
    size = math.fsum(x * length for x, length in zip(w, lengths, strict=True))
    return [x / mean * math.cos(eps) * size for x in a]


def _form(a: list[float], gram: list[list[float]]) -> float:
    """aᵀ gram a: the squared length of the combination."""
    return math.fsum(
        x * y * g for x, row in zip(a, gram, strict=True) for y, g in zip(a, row, strict=True)
    )
