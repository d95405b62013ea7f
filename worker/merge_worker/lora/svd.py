"""The best approximation of a matrix with a given rank, by random projections.

Block Krylov iterations (Musco and Musco, 2015, https://arxiv.org/abs/1504.05477): the singular
vectors of a matrix within the space of all iterates, which are more accurate than those of the last
iterate if the spectrum is flat, as it is for a fully fine-tuned weight.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithms.spectral import prefers_products, spectrum

EXTRA = 8
"""Columns beyond the requested rank."""
ENOUGH = 1e-3
"""Iterations stop when one removes less than this share of the squared error."""
MOST = 12
"""Blocks of columns in the basis."""
FLOAT32 = 1e-11
"""Share of the squares below the precision of float32."""


class Factors(NamedTuple):
    """The factors b (rows, rank), a (rank, columns), each with the root of the singular values."""

    b: Tensor
    a: Tensor


class RankLimit(NamedTuple):
    """The largest rank, and the share `energy` of the squares after which smaller ranks suffice."""

    rank: int
    energy: float = 1.0


def low_rank(matrix: Tensor, limit: RankLimit, name: str) -> Factors:
    """Return factors of a float32 matrix, of rank 1 at least. `name` seeds the projection."""
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.mT if transposed else matrix
    rank = min(limit.rank, tall.shape[1])
    total = float(tall.double().square().sum())
    if total == 0:
        return Factors(matrix.new_zeros(len(matrix), 1), matrix.new_zeros(1, matrix.shape[1]))
    # If iterations would span most of the width, the full Gram matrix is faster.
    if (4 if prefers_products(tall) else 10) * (rank + EXTRA) >= tall.shape[1]:
        values, right = spectrum(tall)
        left = tall @ right[:, :rank].to(tall)
        left, right, values = left / values[:rank].to(tall), right[:, :rank], values[:rank]
    else:
        left, values, right = _krylov(tall, rank, total, name)
    kept = _sufficient_rank(values, limit.energy, total)
    root = values[:kept].sqrt()
    left, right = left[:, :kept].double() * root, right[:, :kept].double() * root
    if transposed:
        left, right = right, left
    return Factors(left.to(matrix).contiguous(), right.mT.to(matrix).contiguous())


def seeded(text: str) -> torch.Generator:
    """Return a generator whose seed is a hash of the text."""
    digest = blake2b(text.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _sufficient_rank(values: Tensor, energy: float, total: float) -> int:
    if energy >= 1:
        return max(1, len(values))
    reached = values.square().cumsum(0) >= energy * total
    return int(reached.nonzero()[0]) + 1 if bool(reached.any()) else max(1, len(values))


def _krylov(tall: Tensor, rank: int, total: float, name: str) -> tuple[Tensor, Tensor, Tensor]:
    width = rank + EXTRA
    start = torch.randn(tall.shape[1], width, generator=seeded(name)).to(tall)
    basis = torch.linalg.qr(tall @ start)[0]
    # The matrix projected on the basis has few rows, and so a small Gram matrix.
    projected, before = basis.mT @ tall, math.inf
    while True:
        squares, vectors = torch.linalg.eigh(projected.double() @ projected.double().mT)
        left = max(0.0, total - float(squares[-rank:].sum()))
        full = basis.shape[1] + width > min(MOST * width, tall.shape[1])
        if before - left <= ENOUGH * left or left <= FLOAT32 * total or full:
            break
        before = left
        new = _orthogonal_part(basis, tall @ projected[-width:].mT)
        basis = torch.cat([basis, new], 1)
        projected = torch.cat([projected, new.mT @ tall])
    squares, vectors = squares[-rank:].clamp_(min=0).flip(0), vectors[:, -rank:].flip(1)
    count = max(1, int((squares > 1e-14 * total).sum()))
    values, vectors = squares[:count].sqrt(), vectors[:, :count].to(tall)
    return basis @ vectors, values, (projected.mT @ vectors) / values.to(tall)


def _orthogonal_part(basis: Tensor, new: Tensor) -> Tensor:
    """Return orthonormal columns for the part of `new` outside of the basis.

    Projects twice, since one projection leaves rounding errors.
    """
    for _ in range(2):
        new = torch.linalg.qr(new - basis @ (basis.mT @ new))[0]
    return new
