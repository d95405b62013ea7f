"""Average what several models changed, keep what one changed."""

from __future__ import annotations

from ..algorithms.ram import Overlap
from ..algorithms.task_vectors import SELECT
from ..method import BaseRole, merge_method


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2601.13572"
)
def ram(*, epsilon: float = 1e-5) -> Overlap:
    """out = b + the mean of those x_m − b that are larger than epsilon in magnitude.

    An element that one model alone changed takes that change whole, instead of a share of it.
    epsilon is absolute: 1e-5 suits weights of usual size; a smaller checkpoint, or float32
    fine-tunes with tiny steps, need a smaller one. There are no weights.
    """
    return Overlap(epsilon)
