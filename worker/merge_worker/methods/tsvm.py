"""Task singular vectors: the strongest directions of every model, made orthogonal to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..algorithms.matrix import MATRIX, Deltas, Rule, significant
from ..algorithms.spectral import polar, spectrum
from ..method import BaseRole, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    MATRIX,
    reference="https://arxiv.org/abs/2412.00081",
    base=BaseRole.REQUIRED,
    experimental=True,
)
def tsvm(*, alpha: float = 1.0) -> Rule:
    """x_m - base = U_m S_m V_m^T, of which the k = ⌊r / models⌋ largest are kept (TSV-M).

    U = [U_1 U_2 …], V and S likewise; out = base + alpha · polar(U) · diag(S) · polar(V)^T, where
    polar is the nearest matrix with orthogonal columns and r the shorter side.

    Of each matrix: tensors of two axes, experts of a stack one by one. Other tensors, and matrices
    with a side shorter than the number of models, get base + alpha · mean of (x_m - base).

    Directions that two models share to the last digit count once, and singular values of 0 bring
    no directions with them; an SVD would fill both at random. Of low-rank deltas (of adapters) the
    directions that only rounding has put there are left out. Published results are of vision
    models; on language models they were mixed (arXiv:2511.21437). An eigendecomposition a model
    and two more for each matrix: see what `check` says of the time.
    """
    return _TSVM(alpha)


@dataclass
class _TSVM(Rule):
    alpha: float

    def delta(self, deltas: Deltas) -> Tensor:
        import torch

        models, short = len(deltas), deltas.short
        keep = short // models
        if keep == 0:
            return deltas.sum().div_(models)
        left = deltas.base.new_empty(deltas.base.shape[0], models * keep, dtype=deltas.work)
        right = left.new_empty(short, models * keep)
        values = left.new_empty(models * keep)
        used = 0
        for model in range(models):
            delta = deltas[model]
            known = spectrum(delta)
            found = min(keep, significant(known.values, short, deltas.rounding(model)))
            here = slice(used, used + found)
            values[here] = known.values[:found]
            right[:, here] = known.right[:, :found]
            torch.matmul(
                delta, (known.right[:, :found] / known.values[:found]).to(delta), out=left[:, here]
            )
            used += found
            del delta, known
        if used == 0:
            return deltas.sum()  # which is 0
        left, right = polar(left[:, :used]), polar(right[:, :used])
        return left.mul_(values[:used]) @ right.mT

    def flops(self, models: int, long: int, short: int) -> int:
        kept = short // models * models
        spectra = models * (2 * long * short**2 + 9 * short**3) + 2 * long * short * kept
        polars = 4 * (long + short) * kept**2 + 22 * kept**3
        return spectra + polars + 2 * long * short * kept

    def numbers(self, models: int, long: int, short: int) -> int:
        return 3 * long * short + long * (short // models) + 3 * short * short
