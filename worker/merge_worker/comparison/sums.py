"""Sums over the elements of a tensor, from which every figure follows.

x_0 is the reference (the base, else the first model), x_i = θ_i − x_0 for every other model. All
sums are float64 and are added in a fixed order, so that threads cannot change them.

The effective rank of a matrix A is R = (Σσ²)² / Σσ⁴ over its singular values (r of equal size give
r; arXiv:1906.11300, definition 3). It is estimated in one pass: with G of n × s standard normal
values and W = (AG)ᵀ(AG), the mean of the squared off-diagonal entries of W is an unbiased estimate
of Σσ⁴, and tr W / s one of Σσ²; the ratio of the two errs by a few per cent for s = 64.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.buffers import Pool

SKETCH = 64
"""Columns s of the sketch."""
ALL_PAIRS_UP_TO = 6
"""Models whose pairs are all sketched; with more, only the pairs of the first model are."""


@dataclass
class Sums:
    """Sums over the elements that are finite in all k models; v of these have vectors."""

    elements: int
    gram: Tensor  # [k, k] float64: Σ x_i x_j
    signs: Tensor  # [v, v] Σ sign(v_i) sign(v_j)
    both_nonzero: Tensor  # [v, v] elements where neither v_i nor v_j is 0
    differ: Tensor  # [k, k] elements where θ_i ≠ θ_j
    opposed: Tensor  # [2] elements nonzero in two or more vectors; of them, where signs conflict
    nonfinite: Tensor  # [k] NaN or Inf
    sketches: dict[int, Tensor] = field(default_factory=dict)  # by matrix: [p, s, s]

    def add(self, other: Sums) -> None:
        """Add the sums over other tensors in place. Sketches are of one tensor, and not added."""
        self.elements += other.elements
        for name in ("gram", "signs", "both_nonzero", "differ", "opposed", "nonfinite"):
            getattr(self, name).add_(getattr(other, name))

    def add_block(self, other: Sums) -> None:
        """Add the sums over another block of the same tensor in place, sketches included."""
        self.add(other)
        for matrix, sketch in other.sketches.items():
            present = self.sketches.get(matrix)
            self.sketches[matrix] = sketch if present is None else present.add_(sketch)


def zero_sums(models: int, has_base: bool) -> Sums:
    """Return the sums over no elements."""
    k, v = models, models - has_base
    zeros = functools.partial(torch.zeros, dtype=torch.float64)
    return Sums(0, zeros(k, k), zeros(v, v), zeros(v, v), zeros(k, k), zeros(2), zeros(k))


@dataclass(frozen=True)
class BlockRows:
    """The position of a block in a stack of matrices with `rows` rows of `length` elements."""

    first: int
    rows: int
    length: int


def sum_block(sources: list[Tensor], has_base: bool, rows: BlockRows | None, pool: Pool) -> Sums:
    """Return the sums of one block: k 1-D tensors in their stored dtypes, the reference first.

    The vectors are the task vectors x_1 … with a base, else the weights θ_0 … themselves.
    With `rows` the deltas are sketched: every x_i, or without a base θ_j − θ_i of sketched_pairs.
    """
    k, n = len(sources), sources[0].numel()
    sums = zero_sums(k, has_base)
    x = pool.take("x", k * n, "float64").view(k, n)
    for row, values in zip(x, sources, strict=True):
        row.copy_(values)
    sums.elements = n - _drop_nonfinite(x, sums.nonfinite)
    flags = pool.take("flags", n, "bool")
    for i in range(k):
        for j in range(i + 1, k):
            sums.differ[i, j] = torch.ne(x[i], x[j], out=flags).count_nonzero()
    sums.differ += sums.differ.mT.clone()
    if not has_base:
        _signs(x, sums, pool)
    x[1:].sub_(x[0])
    if has_base:
        _signs(x[1:], sums, pool)
    torch.mm(x, x.mT, out=sums.gram)
    if rows is not None:
        _sketch(x, has_base, rows, sums, pool)
    return sums


def _drop_nonfinite(x: Tensor, counts: Tensor) -> int:
    """Set elements that are NaN or Inf in any model to 0 in all models, and return their number."""
    if x.sum().isfinite():
        return 0
    bad = ~x.isfinite()
    counts += bad.sum(1)
    anywhere = bad.any(0)
    x[:, anywhere] = 0
    return int(anywhere.sum())


def _signs(vectors: Tensor, sums: Sums, pool: Pool) -> None:
    # A block has fewer than 2^24 elements, so that counts in float32 are exact.
    v, n = vectors.shape
    signs = pool.take("signs", v * n, "float32").view(v, n)
    signs.copy_(torch.sign(vectors, out=pool.take("sign", v * n, "float64").view(v, n)))
    sums.signs.copy_(signs @ signs.mT)
    conflict = (signs.amax(0) > 0) & (signs.amin(0) < 0)
    signs.abs_()
    sums.both_nonzero.copy_(signs @ signs.mT)
    sums.opposed[0] = (signs.sum(0) > 1).count_nonzero()
    sums.opposed[1] = conflict.count_nonzero()


def sketched_pairs(models: int) -> list[tuple[int, int]]:
    """Return the pairs of models whose differences are sketched without a base."""
    firsts = range(models if models <= ALL_PAIRS_UP_TO else 1)
    return [(i, j) for i in firsts for j in range(i + 1, models)]


def _sketch(x: Tensor, has_base: bool, rows: BlockRows, sums: Sums, pool: Pool) -> None:
    k, n = x.shape
    deltas = pool.take("deltas", k * n, "float32").view(k, -1, rows.length)
    deltas.copy_(x.view(deltas.shape))
    if not has_base:
        deltas[0].zero_()
    projected = (deltas @ _directions(rows.length)).double()
    if has_base:
        projected = projected[1:]
    else:
        pairs = sketched_pairs(k)
        projected = torch.stack([projected[j] - projected[i] for i, j in pairs])
    start, stop = rows.first, rows.first + n // rows.length
    while start < stop:
        matrix = start // rows.rows
        end = min(stop, (matrix + 1) * rows.rows)
        part = projected[:, start - rows.first : end - rows.first]
        sums.sketches[matrix] = part.mT @ part
        start = end


_SEEDING = threading.Lock()


@functools.cache
def _directions(length: int) -> Tensor:
    """Return standard normal values (length, SKETCH), equal for all matrices with such rows."""
    # The lock keeps other threads from drawing between the seed and the values. A separate
    # generator would need parts of torch that torch_startup leaves out.
    with _SEEDING:
        torch.default_generator.manual_seed(length)
        return torch.randn(length, SKETCH)


def effective_ranks(sums: Sums, shape: tuple[int, int]) -> list[float] | None:
    """Return (Σσ²)²/Σσ⁴ of every sketched delta, averaged over the matrices of a stack.

    A delta of zeros has rank 0. None if nothing was sketched.
    """
    if not sums.sketches:
        return None
    w = torch.stack(list(sums.sketches.values()))
    s = w.shape[-1]
    squares = w.diagonal(dim1=-2, dim2=-1).sum(-1) / s
    off = (w.square().sum((-2, -1)) - w.diagonal(dim1=-2, dim2=-1).square().sum(-1)) / (s * (s - 1))
    rank = torch.where(off > 0, squares.square() / off, torch.zeros(()).double())
    ranks: list[float] = rank.clamp(max=float(min(shape))).mean(0).tolist()
    return ranks
