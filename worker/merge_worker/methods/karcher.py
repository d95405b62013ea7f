"""Karcher mean: the Riemannian center of mass of models on the sphere (Karcher, 1977)."""

import math

from ..algorithms.gram import Lengths, combined_length
from ..algorithms.weighted_sum import LinearCombination
from ..method import merge_method

OPPOSITE = 1e-3
"""Distance from π at which the tangent between opposite points has no direction in float64."""

NEARLY_OPPOSITE = -0.99
"""Cosine below which products in float32 do not give the angle."""


@merge_method(
    LinearCombination(gram=True, lengths=True), reference="https://doi.org/10.1002/cpa.3160300502"
)
def karcher(
    gram: list[list[float]], lengths_of: Lengths, *, max_iter: int = 10, tol: float = 1e-5
) -> list[float]:
    """Point on the unit sphere with the least squared angles to all models, with their mean length.

    out = m · mean ‖x_i‖, where m on the unit sphere satisfies Σ log_m(x_i/‖x_i‖) = 0

    max_iter: largest number of steps.
    tol: length of a step that ends the iteration. It is absolute, and also the length up to which
      a tensor counts as zero: such a tensor counts in the mean length, not in the direction.

    All models count equally; a `base_model` is one of them. The iterates are combinations of the
    models, so the iteration runs on their dot products alone.

    Edge cases: if the mean direction of the models vanishes (a length up to tol), as for two
    opposite tensors, the iteration starts at the first of them. A tensor opposite to the current
    mean (within 1e-3) has no direction towards it and is left out of that step. Both are decided in
    float64, whatever the dtypes.
    """
    if tol < 0:
        raise ValueError(f"tol must be 0 or more (a length), got {tol:g}")
    lengths = [math.sqrt(g[i]) for i, g in enumerate(gram)]
    valid = [i for i, length in enumerate(lengths) if length > tol]
    if not valid:
        return [0.0] * len(lengths)
    cosines = [[gram[i][j] / (lengths[i] * lengths[j]) for j in valid] for i in valid]
    size = lengths_of([1 / len(valid) / x if x > tol else 0.0 for x in lengths])
    if size < tol or size == 0:
        mean = [1.0] + [0.0] * (len(valid) - 1)
    else:
        mean = [1 / len(valid) / size] * len(valid)
    for _ in range(max_iter):
        step = _step(mean, cosines, tol, lengths_of)
        size = combined_length(step, cosines)
        if size < tol or size == 0:
            break
        moved = [
            math.cos(size) * m + math.sin(size) / size * s for m, s in zip(mean, step, strict=True)
        ]
        mean = _normalized(moved, cosines, tol)
    scale = math.fsum(lengths) / len(lengths)
    directions = dict(zip(valid, mean, strict=True))
    return [
        scale * directions[i] / length if i in directions else 0.0
        for i, length in enumerate(lengths)
    ]


def _step(
    mean: list[float], cosines: list[list[float]], tol: float, lengths_of: Lengths
) -> list[float]:
    """Return the mean tangent at `mean` towards all models, as a combination of unit vectors."""
    step = [0.0] * len(mean)
    for i, row in enumerate(cosines):
        c = max(-1.0, min(1.0, math.fsum(x * y for x, y in zip(row, mean, strict=True))))
        if c < NEARLY_OPPOSITE:
            lengths_of.must_be_exact()
        angle = math.acos(c)
        if angle < tol or angle == 0 or angle > math.pi - OPPOSITE:
            continue
        pull = angle / math.sin(angle) / len(mean)
        step = [s - pull * c * m for s, m in zip(step, mean, strict=True)]
        step[i] += pull
    return step


def _normalized(a: list[float], cosines: list[list[float]], least: float) -> list[float]:
    """Return `a` as a unit vector, or unchanged if its length is at most `least`."""
    length = combined_length(a, cosines)
    return [x / length for x in a] if length > least else a
