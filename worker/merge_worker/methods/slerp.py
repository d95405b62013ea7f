"""Spherical interpolation of two models."""

from __future__ import annotations

import math

from ..algorithms.weighted_sum import Span
from ..method import BaseRole, merge_method


@merge_method(
    Span(gram=True),
    reference="https://dl.acm.org/doi/10.1145/325334.325242",
    base=BaseRole.REQUIRED,
    models=(1, 1),
)
def slerp(gram: list[list[float]], *, t: float) -> list[float]:
    """out = (sin((1-t)θ) base + sin(tθ) other) / sin θ, θ the angle between the two tensors.

    t = 0 is the base and t = 1 the other model, whatever their order in the recipe; t outside
    [0, 1] extrapolates. Each tensor is one vector, whatever its shape.

    Traps: beyond |cos θ| > 0.9995 the tensors are interpolated linearly, opposite ones too. A
    tensor of zeros (norm up to 1e-8) is at right angles to everything: t = 0.5 gives 0.707 of the
    other tensor, not half of it. A source that stands alone in its slice is copied.

    Snippets often interpolate each row, the last dimension, by its own angle: that is `nuslerp`
    with `nuslerp_flatten: false`, no `base_model`, and the weights 1-t (first) and t (second).
    """
    lengths = [math.sqrt(gram[i][i]) for i in (0, 1)]
    other, base = (length if length > 1e-8 else 1.0 for length in lengths)
    d = max(-1.0, min(1.0, gram[0][1] / (other * base)))
    if abs(d) > 0.9995:
        return [t, 1 - t]
    angle = math.acos(d)
    return [math.sin(t * angle) / math.sin(angle), math.sin((1 - t) * angle) / math.sin(angle)]
