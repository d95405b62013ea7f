"""The geometric median of models, by Weiszfeld's algorithm on their distances."""

import math
from collections.abc import Sequence

from ..algorithms.weighted_sum import LinearCombination
from ..method import BaseRole, Tensor, merge_method, per_model

STEPS = 1000
EXCESS = 1e-12
"""Excess of the sum of distances, relative to its minimum, at which the iteration ends."""

SAME = 1e-13
"""Squared distance, relative to squared lengths, up to which two models count as equal."""


@merge_method(
    LinearCombination(task_vectors=True, gram=True, exact=True),
    reference="https://doi.org/10.1073/pnas.97.4.1423",
    base=BaseRole.OPTIONAL,
    models=(1, None),
    experimental=True,
)
def geomedian(
    gram: Sequence[Sequence[float]], *, weight: list[float] = per_model(1.0)
) -> list[float]:
    """Point with the least sum of distances to the models: a mean that outliers do not move.

    out = Σ c_m x_m, the minimum of Σ w_m ‖out − x_m‖ over the tensor
    Weiszfeld's step: c_m ∝ w_m/‖Σ c_k x_k − x_m‖, from c_m ∝ w_m, in the form of Vardi and Zhang

    weight: w_m, 0 or more. A model with half of the weights or more is the result.

    All follows from the dot products of the tensor (float64), which are read once, as in
    model_stock. A model that is the minimum itself is found by its own condition and copied; of
    several the mean is taken, so that two models of equal weight give their mean. Else the steps
    end when the sum of distances is proven to exceed its minimum by at most 1e-12 of it, or after
    1000. Every tensor has a median of its own. The base has no vote; with one, dot products are
    those of task vectors. One model far away moves the result by a bounded distance, where the mean
    follows it without limit; two models agree against a third, whoever is right.
    """
    import torch

    if any(not w >= 0 for w in weight) or not any(weight):
        raise ValueError("geomedian: weights must be 0 or more, and not all 0")
    products = torch.tensor(gram, dtype=torch.float64)
    sizes = products.diagonal()
    squares = sizes[:, None] + sizes[None] - 2 * products
    same = squares <= SAME * (sizes[:, None] + sizes[None])
    squares = squares.masked_fill(same, 0.0).clamp(min=0)
    # Equal models are one point with the sum of their weights: the first of them.
    first = same.to(torch.int8).argmax(1).tolist()
    w = torch.zeros(len(first), dtype=torch.float64)
    for point, mine in zip(first, weight, strict=True):
        w[point] += mine / max(weight)
    used = [point for point in sorted(set(first)) if w[point] > 0]
    found = _median(squares[used][:, used], w[used])
    coefficients = [0.0] * len(first)
    for point, share in zip(used, found, strict=True):
        coefficients[point] = share
    return coefficients


def _median(squares: Tensor, w: Tensor) -> list[float]:
    """Return the coefficients of the geometric median of points that are apart.

    `squares` [point, point] are squared distances, `w` the weights.
    """
    import torch

    count = len(w)
    pull = torch.tensor([_pull(squares, w, point) for point in range(count)], dtype=w.dtype)
    minima = pull <= w * (1 + 1e-9)
    if bool(minima.any()):
        return (minima / minima.sum()).tolist()
    c = w / w.sum()
    for _ in range(STEPS):
        distances = _distances(squares, c)
        nearest = int(distances.argmin())
        if float(distances[nearest]) <= 1e-12 * float(distances.max()):
            # On a point that is not the minimum: leave it in the direction of the others' pull.
            others = w / squares[nearest].sqrt()
            others[nearest] = 0.0
            share = float(w[nearest] / pull[nearest])
            c = (1 - share) * others / others.sum()
            c[nearest] = share
            continue
        inverse = w / distances
        following = inverse / inverse.sum()
        step = following - c
        # ‖Σ e_m x_m‖² of coefficients e that add up to 0 is −½ Σ e_m e_k ‖x_m − x_k‖².
        moved = math.sqrt(max(0.0, -0.5 * float(step @ squares @ step)))
        c = following
        # The gradient is Σ w/d times the step; no point is farther from the minimum than max d.
        if float(inverse.sum()) * moved * float(distances.max()) <= EXCESS * float(w @ distances):
            break
    return [float(share) for share in c]


def _distances(squares: Tensor, c: Tensor) -> Tensor:
    """Return the distances of Σ c_m x_m to all points; the c_m add up to 1."""
    to_points = squares @ c
    return (to_points - 0.5 * (c @ to_points)).clamp(min=0).sqrt()


def _pull(squares: Tensor, w: Tensor, point: int) -> float:
    """Return the length of Σ w_m (x_m − x_p)/‖x_m − x_p‖ over the other points m."""
    others = w / squares[point].sqrt()
    others[point] = 0.0
    # The dot product of x_m − x_p and x_k − x_p is half of d_mp² + d_kp² − d_mk².
    dots = 0.5 * (squares[point][:, None] + squares[point][None] - squares)
    return math.sqrt(max(0.0, float(others @ dots @ others)))
