"""As ram, with what one model alone changed made stronger."""

from __future__ import annotations

from ..algorithms.ram import Overlap
from ..algorithms.task_vectors import SELECT
from ..method import BaseRole, merge_method


@merge_method(
    SELECT, base=BaseRole.REQUIRED, models=(0, None), reference="https://arxiv.org/abs/2601.13572"
)
def ramplus_tl(*, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2) -> Overlap:
    """out = b + the mean of shared changes, and λ_m (x_m − b) where model m alone changed b.

    A change is larger than epsilon in magnitude. λ_m = 1 + r · clamp(shared/unique, 0, alpha), from
    the numbers of elements that model m changed together with others and alone, per tensor: with
    the defaults at most 1.02. epsilon is absolute, as in ram. There are no weights.
    mergekit stores the result of 16-bit models as float32; here it has the dtype of the output.
    """
    return Overlap(epsilon, r, alpha)
