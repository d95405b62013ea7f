"""Spherical interpolation of two models, or of what they learnt, by weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..algorithms.gram import Vectors
from ..algorithms.weighted_sum import Span
from ..method import BaseRole, merge_method

if TYPE_CHECKING:
    from torch import Tensor


def _vectors(values: Mapping[str, Any]) -> Vectors:
    if values["nuslerp_flatten"]:
        return Vectors.WHOLE
    return Vectors.COLUMNS if values["nuslerp_row_wise"] else Vectors.ROWS


@merge_method(
    # Opposite vectors show at float32: the formula divides by the sine of their angle.
    Span(deltas=True, gram=True, vectors=_vectors, exact=True),
    reference="https://dl.acm.org/doi/10.1145/325334.325242",
    base=BaseRole.OPTIONAL,
    models=(2, 2),
)
def nuslerp(
    gram: Tensor,
    *,
    weight: list[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> list[Tensor]:
    """out = base + (sin((1-t)θ) δ1 + sin(tθ) δ2) / sin θ with t = w2 / (w1 + w2).

    δ is the difference from the base, or the model itself where there is no base; θ is the angle
    between the two δ. Order matters: t = 1 is the second model of the recipe that is not the base.

    `nuslerp_flatten: false` takes each run along the last axis for a vector of its own, and with
    `nuslerp_row_wise: true` each run along the first axis: the stored columns, against the name.
    That is the SLERP per last dimension of many snippets.

    Traps: weights that add up to 0 (within 1e-6) mean t = 0.5; a negative weight extrapolates.
    Vectors on one line, opposite ones too, are interpolated linearly. There is no threshold for
    nearly parallel ones: both formulas have the same limit. A source that stands alone is copied.
    """
    import torch

    total = weight[0] + weight[1]
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    first, second = (gram[i, i].sqrt().clamp(min=1e-7) for i in (0, 1))
    cosine = (gram[0, 1] / (first * second)).clamp(-1, 1)
    angle = cosine.acos()
    # Sums of float64 leave opposite vectors a few 1e-16 from -1.
    on_a_line = 1 - cosine * cosine <= 1e-14
    return [
        torch.where(on_a_line, part, torch.sin(part * angle) / torch.sin(angle))
        for part in (1 - t, t)
    ]
