"""Passthrough: layers of one model, copied or scaled (depth up-scaling, Kim et al., 2023)."""

from ..algorithms.weighted_sum import LinearCombination
from ..method import merge_method, per_model


@merge_method(LinearCombination(), reference="https://arxiv.org/abs/2312.15166", models=(1, 1))
def passthrough(*, scale: list[float] = per_model(1.0)) -> list[float]:
    """Copy one model, or scale it: for layers that are stacked, repeated or switched off.

    out = scale · x

    scale: 1 keeps every bit. `scale: [{filter: o_proj, value: 0}, {filter: down_proj, value: 0},
      {value: 1}]` turns a copied layer into one without effect.

    A `base_model` would be a second source and is refused.
    """
    return list(scale)
