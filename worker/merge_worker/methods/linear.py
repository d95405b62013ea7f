"""Linear: weighted average of models (model soups, Wortsman et al., 2022)."""

from ..algorithms.weighted_sum import LinearCombination, scaled
from ..method import merge_method


@merge_method(LinearCombination(), reference="https://arxiv.org/abs/2203.05482")
def linear(*, weight: list[float], normalize: bool = True) -> list[float]:
    """Weighted average of the models (model soup).

    out = Σ w_m x_m / Σ w_m

    weight: w_m, may be negative.
    normalize: divide by Σ w_m; false gives the plain sum. With true, weights that add up to 0 are
      an error (mergekit writes Inf and NaN).
    """
    if not normalize:
        return list(weight)
    weight = scaled(weight)
    total = sum(weight)
    if total == 0:
        raise ZeroDivisionError("the weights add up to 0: set normalize: false, or other weights")
    return [w / total for w in weight]
