"""Iso-C: isotropic merging in common space (Marczak et al., 2025)."""

from ..algorithms.matrix import MATRIX, MatrixDeltas, MatrixRule, concentrated, significant_count
from ..algorithms.spectral import newton_schulz, polar_of, prefers_products, spectrum
from ..method import BaseRole, Tensor, merge_method


@merge_method(
    MATRIX, reference="https://arxiv.org/abs/2502.04959", base=BaseRole.REQUIRED, experimental=True
)
def iso_c(*, alpha: float = 1.0) -> MatrixRule:
    """Add up task vectors and make all singular values of the sum equal (isotropic merging).

    D = Σ (x_m − base) = U S V^T
    out = base + alpha · mean(S) · U V^T

    alpha: factor of the merged task vector; 1 in the authors' code, 1.5 in some of their examples.

    The formula applies to each matrix: tensors of two axes, and experts of a stack one by one.
    Other tensors get base + alpha · mean of (x_m − base), as in the authors' code.

    Directions in which D is 0 stay 0, and the mean is over the others; an SVD would fill them at
    random. Low-rank task vectors (of adapters) are recognized by their spectrum, and directions
    that contain only rounding errors are left out: the formula taken literally would make these as
    large as the learned ones. Published results are of vision models; on language models they were
    mixed (arXiv:2511.21437). One eigendecomposition per matrix; `check` estimates the time.
    """
    return _IsoC(alpha)


class _IsoC(MatrixRule):
    def merged(self, deltas: MatrixDeltas) -> Tensor:
        total, short = deltas.sum(), deltas.short
        factor = newton_schulz(total) if prefers_products(total) else None
        if factor is not None:
            nuclear_norm = float(total.flatten().dot(factor.flatten()))
            if not concentrated(nuclear_norm, float(total.norm()) ** 2, short):
                return factor.mul_(nuclear_norm / short)
        known = spectrum(total)
        count = significant_count(known.values, short, deltas.rounding(*range(len(deltas))))
        if count == 0:
            return total.zero_()
        return polar_of(total, known, count).mul_(float(known.values[:count].mean()))

    def flops(self, models: int, long: int, short: int) -> int:
        return 2 * models * long * short + 4 * long * short**2 + 11 * short**3

    def peak_numbers(self, models: int, long: int, short: int) -> int:
        return 3 * long * short + short * short
