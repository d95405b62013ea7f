"""TSV-M: merging of task singular vectors (Gargiulo et al., 2024)."""

from ..algorithms.matrix import MATRIX, MatrixDeltas, MatrixRule, significant_count
from ..algorithms.spectral import polar, spectrum
from ..method import BaseRole, Tensor, merge_method


@merge_method(
    MATRIX, reference="https://arxiv.org/abs/2412.00081", base=BaseRole.REQUIRED, experimental=True
)
def tsvm(*, alpha: float = 1.0) -> MatrixRule:
    """Keep the strongest singular vectors of every task vector, make them orthogonal, add (TSV-M).

    x_m − base = U_m S_m V_m^T, of which the k = ⌊r / models⌋ largest singular values are kept,
                 with r the shorter side
    U = [U_1 U_2 …], S and V likewise
    out = base + alpha · polar(U) · diag(S) · polar(V)^T, with polar the nearest matrix with
          orthogonal columns

    alpha: factor of the merged task vector.

    The formula applies to each matrix: tensors of two axes, and experts of a stack one by one.
    Other tensors, and matrices with a side shorter than the number of models, get
    base + alpha · mean of (x_m − base).

    Directions that two models share exactly count once, and singular values of 0 bring no
    directions with them; an SVD would fill both at random. Of low-rank task vectors (of adapters),
    directions that contain only rounding errors are left out. Published results are of vision
    models; on language models they were mixed (arXiv:2511.21437). One eigendecomposition per model
    and two more for each matrix; `check` estimates the time.
    """
    return _TSVM(alpha)


class _TSVM(MatrixRule):
    def merged(self, deltas: MatrixDeltas) -> Tensor:
        import torch

        models, short = len(deltas), deltas.short
        most = short // models
        if most == 0:
            return deltas.sum().div_(models)
        left = deltas.base.new_empty(deltas.base.shape[0], models * most, dtype=deltas.work)
        right = left.new_empty(short, models * most)
        values = left.new_empty(models * most)
        used = 0
        for model in range(models):
            delta = deltas[model]
            known = spectrum(delta)
            count = min(most, significant_count(known.values, short, deltas.rounding(model)))
            columns = slice(used, used + count)
            values[columns] = known.values[:count]
            right[:, columns] = known.right[:, :count]
            scaled = (known.right[:, :count] / known.values[:count]).to(delta)
            torch.matmul(delta, scaled, out=left[:, columns])
            used += count
            del delta, known, scaled
        if used == 0:
            return deltas.sum()  # zero
        left, right = polar(left[:, :used]), polar(right[:, :used])
        return left.mul_(values[:used]) @ right.mT

    def flops(self, models: int, long: int, short: int) -> int:
        kept = short // models * models
        spectra = models * (2 * long * short**2 + 9 * short**3) + 2 * long * short * kept
        polars = 4 * (long + short) * kept**2 + 22 * kept**3
        return spectra + polars + 2 * long * short * kept

    def peak_numbers(self, models: int, long: int, short: int) -> int:
        return 3 * long * short + long * (short // models) + 3 * short * short
