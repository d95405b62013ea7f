"""Karcher mean: the point on the sphere with the least squared angles to all models."""

from __future__ import annotations

import math

from ..algorithms.weighted_sum import Span
from ..method import merge_method

OPPOSITE = 1e-3
"""Angle from which the way between two opposite points has no direction in double precision."""


@merge_method(Span(gram=True), reference="https://doi.org/10.1002/cpa.3160300502")
def karcher(gram: list[list[float]], *, max_iter: int = 10, tol: float = 1e-5) -> list[float]:
    """out = m · mean length, where m has Σ log_m(x_i/‖x_i‖) = 0 on the unit sphere.

    The iteration never leaves the span of the models, so all of it runs on their scalar products;
    up to `max_iter` steps, until one is shorter than `tol`. All models count alike.

    Traps: `tol` is absolute and also the length up to which a tensor is zero: such a tensor
    counts in the mean length, not in the direction. Of two opposite tensors the first decides;
    one opposite to the mean (within 1e-3) has no direction towards it and waits a step. A
    `base_model` joins the mean.
    """
    lengths = [math.sqrt(g[i]) for i, g in enumerate(gram)]
    valid = [i for i, length in enumerate(lengths) if length > tol]
    if not valid:
        return [0.0] * len(lengths)
    cosines = [[gram[i][j] / (lengths[i] * lengths[j]) for j in valid] for i in valid]
    mean = _start(cosines, tol)
    for _ in range(max_iter):
        step = _step(mean, cosines, tol)
        size = _length(step, cosines)
        if size < tol:
            break
        moved = [
            math.cos(size) * m + math.sin(size) / size * s for m, s in zip(mean, step, strict=True)
        ]
        mean = _scaled(moved, cosines, tol)
    scale = math.fsum(lengths) / len(lengths)
    found = dict(zip(valid, mean, strict=True))
    return [scale * found[i] / length if i in found else 0.0 for i, length in enumerate(lengths)]


def _start(cosines: list[list[float]], tol: float) -> list[float]:
    """The direction of the plain mean; of the first model where the mean vanishes."""
    count = len(cosines)
    mean = [1 / count] * count
    if _length(mean, cosines) < tol:
        return [1.0] + [0.0] * (count - 1)
    return _scaled(mean, cosines, 0.0)


def _step(mean: list[float], cosines: list[list[float]], tol: float) -> list[float]:
    """Mean of the tangents at `mean` towards all models, as a combination of unit vectors."""
    step = [0.0] * len(mean)
    for i, row in enumerate(cosines):
        c = max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(row, mean, strict=True))))
        angle = math.acos(c)
        if angle < tol or angle > math.pi - OPPOSITE:
            continue
        pull = angle / math.sin(angle) / len(mean)
        step = [s - pull * c * m for s, m in zip(step, mean, strict=True)]
        step[i] += pull
    return step


def _length(a: list[float], cosines: list[list[float]]) -> float:
    terms = (
        x * y * c for x, row in zip(a, cosines, strict=True) for y, c in zip(a, row, strict=True)
    )
    return math.sqrt(max(0.0, math.fsum(terms)))


def _scaled(a: list[float], cosines: list[list[float]], least: float) -> list[float]:
    """`a` as a unit vector, unless it is no longer than `least`."""
    length = _length(a, cosines)
    return [x / length for x in a] if length > least else a
