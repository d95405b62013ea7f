"""NuSLERP: spherical interpolation of two models, or of their task vectors, by weights."""

from collections.abc import Mapping
from typing import Any

from ..algorithms.gram import Vectors
from ..algorithms.weighted_sum import LinearCombination, scaled, total_of
from ..method import BaseRole, Tensor, merge_method


def _vectors(values: Mapping[str, Any]) -> Vectors:
    if values["nuslerp_flatten"]:
        return Vectors.TENSOR
    return Vectors.COLUMNS if values["nuslerp_row_wise"] else Vectors.ROWS


@merge_method(
    # Exact dot products, since the formula divides by the sine of the angle: float32 shows if
    # vectors are opposite.
    LinearCombination(task_vectors=True, gram=True, vectors=_vectors, exact=True),
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
    """Spherical interpolation of two models, or of their task vectors, by weights.

    out = base + (sin((1−t)θ) δ_1 + sin(tθ) δ_2) / sin θ, with t = w_2 / (w_1 + w_2)
    δ_m = x_m − base, or x_m if the recipe has no base; θ is the angle between δ_1 and δ_2

    weight: w_m. Order matters: t = 1 gives the second model of the recipe that is not the base. A
      negative weight extrapolates; weights that add up to 0 (within 1e-6) mean t = 0.5.
    nuslerp_flatten: treat the tensor as one vector; false treats each run along the last axis as a
      vector of its own, as many implementations of SLERP do.
    nuslerp_row_wise: with nuslerp_flatten: false, treat each run along the first axis (a stored
      column, in spite of the name) as a vector.

    Edge cases: parallel and opposite vectors are interpolated linearly. There is no threshold for
    nearly parallel ones, since both formulas have the same limit. A source that is alone in its
    slice is copied.
    """
    import torch

    first, second = scaled(weight)
    t = second / (first + second) if abs(total_of(weight)) >= 1e-6 else 0.5
    lengths = [gram[i, i].sqrt().clamp(min=1e-7) for i in (0, 1)]
    cosine = (gram[0, 1] / (lengths[0] * lengths[1])).clamp(-1, 1)
    angle = cosine.acos()
    # Sums in float64 leave opposite vectors a few 1e-16 from −1.
    parallel = 1 - cosine * cosine <= 1e-14
    return [
        torch.where(parallel, part, torch.sin(part * angle) / torch.sin(angle))
        for part in (1 - t, t)
    ]
