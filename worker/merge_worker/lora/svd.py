"""The best approximation of given rank of a matrix, by random projections.

Block Krylov iterations (Musco and Musco, 2015, https://arxiv.org/abs/1504.05477): the singular
vectors of a matrix within the space of all iterates, which beat those of the last one alone where
the spectrum is flat, as that of a fully fine-tuned weight is.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from ..algorithms.spectral import prefers_products, spectrum

if TYPE_CHECKING:
    from torch import Tensor


EXTRA = 8
"""Columns beyond the rank that is asked for."""
ENOUGH = 1e-3
"""An iteration that takes less than this of the squared error was the last."""
MOST = 12
FLOAT32 = 1e-11
"""A share of the squares that float32 cannot tell from none."""


class Factors(NamedTuple):
    """b (rows, rank) times a (rank, columns), each with the root of the singular values."""

    b: Tensor
    a: Tensor


class Wanted(NamedTuple):
    """Up to `rank`, and no more than it takes to keep the share `energy` of the squares."""

    rank: int
    energy: float = 1.0


def low_rank(matrix: Tensor, wanted: Wanted, name: str) -> Factors:
    """Factors of a float32 matrix; `name` seeds the projection. Rank 1 at least."""
    turned = matrix.shape[0] < matrix.shape[1]
    tall = matrix.mT if turned else matrix
    rank = min(wanted.rank, tall.shape[1])
    total = float(tall.double().square().sum())
    if total == 0:
        return Factors(matrix.new_zeros(len(matrix), 1), matrix.new_zeros(1, matrix.shape[1]))
    # Where iterations come near the whole width, the Gram matrix of all of it is made sooner.
    if (4 if prefers_products(tall) else 10) * (rank + EXTRA) >= tall.shape[1]:
        values, right = spectrum(tall)
        left = tall @ right[:, :rank].to(tall)
        left, right, values = left / values[:rank].to(tall), right[:, :rank], values[:rank]
    else:
        left, values, right = _krylov(tall, rank, total, name)
    kept = _enough(values, wanted.energy, total)
    root = values[:kept].sqrt()
    left, right = left[:, :kept].double() * root, right[:, :kept].double() * root
    if turned:
        left, right = right, left
    return Factors(left.to(matrix).contiguous(), right.mT.to(matrix).contiguous())


def _enough(values: Tensor, energy: float, total: float) -> int:
    if energy >= 1:
        return max(1, len(values))
    reached = values.square().cumsum(0) >= energy * total
    return int(reached.nonzero()[0]) + 1 if bool(reached.any()) else max(1, len(values))


def _krylov(tall: Tensor, rank: int, total: float, name: str) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    seed = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
    generator = torch.Generator().manual_seed(seed)
    width = rank + EXTRA
    start = torch.randn(tall.shape[1], width, generator=generator).to(tall)
    basis = torch.linalg.qr(tall @ start)[0]
    # What the basis holds of the matrix: its short side, of which the Gram matrix tells all.
    held, before = basis.mT @ tall, math.inf
    while True:
        squares, vectors = torch.linalg.eigh(held.double() @ held.double().mT)
        left = max(0.0, total - float(squares[-rank:].sum()))
        full = basis.shape[1] + width > min(MOST * width, tall.shape[1])
        if before - left <= ENOUGH * left or left <= FLOAT32 * total or full:
            break
        before = left
        new = _beside(basis, tall @ held[-width:].mT)
        basis, held = torch.cat([basis, new], 1), torch.cat([held, new.mT @ tall])
    squares, vectors = squares[-rank:].clamp_(min=0).flip(0), vectors[:, -rank:].flip(1)
    count = max(1, int((squares > 1e-14 * total).sum()))
    values, vectors = squares[:count].sqrt(), vectors[:, :count].to(tall)
    return basis @ vectors, values, (held.mT @ vectors) / values.to(tall)


def _beside(basis: Tensor, new: Tensor) -> Tensor:
    """Columns that span what `new` has and the basis has not; twice, since once leaves rounding."""
    import torch

    for _ in range(2):
        new = torch.linalg.qr(new - basis @ (basis.mT @ new))[0]
    return new
