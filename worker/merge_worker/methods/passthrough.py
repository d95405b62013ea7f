"""One model as it is, or scaled."""

from __future__ import annotations

from ..algorithms.weighted_sum import SPAN
from ..method import merge_method


@merge_method(SPAN, reference="https://arxiv.org/abs/2312.15166", models=(1, 1))
def passthrough(
    *,
    # mypy: a default stands for every model
    scale: list[float] = 1.0,  # type: ignore[assignment]
) -> list[float]:
    """out = scale · x, for layers that are stacked, repeated or switched off.

    Without `scale`, and with 1, every bit is kept. `scale: [{filter: o_proj, value: 0}, {filter:
    down_proj, value: 0}, {value: 1}]` makes a copied layer do nothing. A `base_model` would be a
    second source and is refused.
    """
    return list(scale)
