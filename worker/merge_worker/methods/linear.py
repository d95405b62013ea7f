"""Weighted average of the models."""

from __future__ import annotations

from ..algorithms.weighted_sum import SPAN
from ..method import merge_method


@merge_method(SPAN, reference="https://arxiv.org/abs/2203.05482")
def linear(*, weight: list[float], normalize: bool = True) -> list[float]:
    """out = Σ w_m x_m, divided by Σ w_m if `normalize` (model soup).

    Weights may be negative. A sum of zero with `normalize` is an error of the recipe, where
    mergekit would write Inf and NaN.
    """
    if not normalize:
        return list(weight)
    total = sum(weight)
    if total == 0:
        raise ZeroDivisionError("the weights add up to 0: set normalize: false, or other weights")
    return [w / total for w in weight]
