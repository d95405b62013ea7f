"""Isotropic merging in common space: the sum of the deltas with all its singular values equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..algorithms.matrix import MATRIX, Deltas, Rule, concentrated, significant
from ..algorithms.spectral import newton_schulz, polar_of, products_first, spectrum
from ..method import BaseRole, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    MATRIX,
    reference="https://arxiv.org/abs/2502.04959",
    base=BaseRole.REQUIRED,
    experimental=True,
)
def iso_c(*, alpha: float = 1.0) -> Rule:
    """D = Σ (x_m - base) = U S V^T; out = base + alpha · mean(S) · U V^T.

    Of each matrix: tensors of two axes, experts of a stack one by one. Other tensors get
    base + alpha · mean of (x_m - base), as in the authors' code. alpha is 1 there, and 1.5 in
    some of their examples.

    Directions in which D is 0 stay 0, and the mean is over the others; an SVD would fill them at
    random. Low-rank deltas (of adapters) are found by their spectrum, and the directions that
    only rounding has put there are left out: the formula to the letter would make them as large
    as the learnt ones. Published results are of vision models; on language models they were
    mixed (arXiv:2511.21437). One eigendecomposition a matrix: see what `check` says of the time.
    """
    return _IsoC(alpha)


@dataclass
class _IsoC(Rule):
    alpha: float

    def delta(self, deltas: Deltas) -> Tensor:
        total, short = deltas.sum(), deltas.short
        factor = newton_schulz(total) if products_first(total) else None
        if factor is not None:
            length = float(total.flatten().dot(factor.flatten()))
            if not concentrated(length, float(total.norm()) ** 2, short):
                return factor.mul_(length / short)
        known = spectrum(total)
        count = significant(known.values, short, deltas.rounding(*range(len(deltas))))
        if count == 0:
            return total.zero_()
        return polar_of(total, known, count).mul_(float(known.values[:count].mean()))

    def flops(self, models: int, long: int, short: int) -> int:
        return 2 * models * long * short + 4 * long * short**2 + 11 * short**3

    def numbers(self, models: int, long: int, short: int) -> int:
        return 3 * long * short + short * short
