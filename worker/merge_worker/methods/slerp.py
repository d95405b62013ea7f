"""SLERP: spherical linear interpolation of two models (Shoemake, 1985)."""

import math

from ..algorithms.weighted_sum import LinearCombination
from ..method import BaseRole, merge_method


@merge_method(
    LinearCombination(gram=True),
    reference="https://dl.acm.org/doi/10.1145/325334.325242",
    base=BaseRole.REQUIRED,
    models=(1, 1),
)
def slerp(gram: list[list[float]], *, t: float) -> list[float]:
    """Spherical interpolation between the base and one other model.

    out = (sin((1−t)θ) base + sin(tθ) other) / sin θ, with θ the angle between the two tensors

    t: 0 gives the base and 1 the other model, whatever their order in the recipe; values outside
      [0, 1] extrapolate.

    Each tensor is one vector, whatever its shape. Some implementations interpolate each row (the
    last dimension) by its own angle: for that use `nuslerp` with `nuslerp_flatten: false`, no
    `base_model`, and the weights 1−t (first model) and t (second).

    Edge cases: if |cos θ| > 0.9995 the tensors are interpolated linearly, also if they point in
    opposite directions. A tensor of zeros (norm up to 1e-8) counts as orthogonal to any other:
    t = 0.5 then gives 0.707 of the other tensor, not half of it. A source that is alone in its
    slice is copied.
    """
    if math.isinf(t * math.pi):
        raise ValueError(f"t {t:g} is too large: its angle has no sine")
    lengths = [math.sqrt(gram[i][i]) for i in (0, 1)]
    other, base = (length if length > 1e-8 else 1.0 for length in lengths)
    cosine = max(-1.0, min(1.0, gram[0][1] / (other * base)))
    if abs(cosine) > 0.9995:
        return [t, 1 - t]
    angle = math.acos(cosine)
    return [math.sin(t * angle) / math.sin(angle), math.sin((1 - t) * angle) / math.sin(angle)]
