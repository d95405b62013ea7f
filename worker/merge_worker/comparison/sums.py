"""Sums over the elements of a tensor, from which every figure follows.

x_0 is the reference (the base, else the first model), x_i = θ_i − x_0 for every other model. All
sums are float64 and are added in a fixed order, so that threads cannot change them. Counts are
exact; norms and cosines, of products in float32, are within 1e-6 of those of float64.

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
BLOCK = 1 << 16
"""Elements computed at a time, few enough to stay in a core's cache."""
CHUNK = 1024
"""Products added in float32 before their sum goes on in float64."""
CANCELLED, UNDERFLOW = 0.01, 1e-20
"""Squared distances of a piece, over the lengths they are computed from, and alone, below which
float32 could be seen in the figures."""
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

    def add_piece(self, other: Sums) -> None:
        """Add the sums over another piece of the same tensor in place, sketches included."""
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
class PieceRows:
    """The position of a piece in a stack of matrices with `rows` rows of `length` elements."""

    first: int
    rows: int
    length: int


def sum_piece(sources: list[Tensor], has_base: bool, rows: PieceRows | None, pool: Pool) -> Sums:
    """Return the sums of one piece: k 1-D tensors in their stored dtypes, the reference first.

    The vectors are the task vectors x_1 … with a base, else the weights θ_0 … themselves.
    With `rows` the deltas are sketched: every x_i, or without a base θ_j − θ_i of sketched_pairs.

    Counts are exact. Elements are float32 unless one is stored as float64, or rounding could show:
    then the piece is computed again in float64.
    """
    if all(x.dtype is not torch.float64 for x in sources):
        sums = _sums(sources, has_base, "float32", rows, pool)
        if _is_precise(sums):
            return sums
    return _sums(sources, has_base, "float64", rows, pool)


def _sums(
    sources: list[Tensor], has_base: bool, dtype: str, rows: PieceRows | None, pool: Pool
) -> Sums:
    """Return the sums over a piece, computed in this dtype block by block."""
    k, n = len(sources), sources[0].numel()
    sums = zero_sums(k, has_base)
    sums.elements = n
    size = max(1, BLOCK // rows.length) * rows.length if rows else BLOCK
    for start in range(0, n, size):
        count = min(size, n - start)
        x = pool.take("x", k * count, dtype).view(k, count)
        for row, values in zip(x, sources, strict=True):
            row.copy_(values[start : start + count])
        if dtype == "float64":  # in float32 the Gram matrix tells
            sums.elements -= _drop_nonfinite(x, sums.nonfinite)
        work = pool.take("work", k * count, dtype).view(k, count)
        _count_different(x, sums.differ, work)
        if not has_base:
            _count_signs(x, sums, work)
        x[1:].sub_(x[0])
        if has_base:
            _count_signs(x[1:], sums, work[1:])
        _add_gram(x, sums.gram)
        if rows:
            at = PieceRows(rows.first + start // rows.length, rows.rows, rows.length)
            _sketch(x, has_base, at, sums)
    return sums


def _add_gram(x: Tensor, gram: Tensor) -> None:
    """Add Σ x_i x_j, summed in x's dtype over CHUNK elements at a time, then in float64."""
    k, n = x.shape
    whole = n - n % CHUNK
    if whole:
        chunks = x[:, :whole].view(k, -1, CHUNK).transpose(0, 1)
        gram += torch.bmm(chunks, chunks.mT).sum(0, dtype=torch.float64)
    if whole < n:
        gram += x[:, whole:] @ x[:, whole:].mT


def _is_precise(sums: Sums) -> bool:
    """Return whether float32 was enough: all finite, nothing lost by underflow or cancellation."""
    gram = sums.gram
    if not gram.isfinite().all():
        return False
    lengths, first = gram.diagonal(), gram[0, 0]
    norms = lengths + 2 * gram[0] + first  # squares of |θ_i|
    norms[0] = first
    distances = lengths[:, None] + lengths - 2 * gram
    distances[0] = distances[:, 0] = lengths
    scale = torch.maximum(lengths[:, None], lengths)
    scale[0] = scale[:, 0] = lengths
    lost = (distances < torch.clamp(CANCELLED * scale, min=UNDERFLOW)) & (sums.differ > 0)
    small = norms < torch.clamp(CANCELLED * torch.maximum(lengths, first), min=UNDERFLOW)
    return not bool(lost.any() or small.any())


def _drop_nonfinite(x: Tensor, counts: Tensor) -> int:
    """Set elements that are NaN or Inf in any model to 0 in all models, and return their number."""
    if x.sum().isfinite():
        return 0
    bad = ~x.isfinite()
    counts += bad.sum(1)
    anywhere = bad.any(0)
    x[:, anywhere] = 0
    return int(anywhere.sum())


# Comparisons that write numbers are vectorized, those that write bools are not; products with ones
# add columns faster than sums. A block has fewer than 2^24 elements: counts in float32 are exact.


def _count_different(x: Tensor, counts: Tensor, work: Tensor) -> None:
    for i in range(len(x) - 1):
        found = torch.ne(x[i + 1 :], x[i], out=work[i + 1 :]).sum(1)
        counts[i, i + 1 :] += found
        counts[i + 1 :, i] += found


def _count_signs(vectors: Tensor, sums: Sums, work: Tensor) -> None:
    ones = vectors.new_ones(1, len(vectors))
    signs = torch.sign(vectors, out=work)
    sums.signs += signs @ signs.mT
    total = (ones @ signs).abs_()
    signs.abs_()
    sums.both_nonzero += signs @ signs.mT
    nonzero = ones @ signs
    # Signs agree where their sum is as large as their number.
    sums.opposed[1] += total.ne_(nonzero).sum()
    sums.opposed[0] += nonzero.gt_(1).sum()


def sketched_pairs(models: int) -> list[tuple[int, int]]:
    """Return the pairs of models whose differences are sketched without a base."""
    firsts = range(models if models <= ALL_PAIRS_UP_TO else 1)
    return [(i, j) for i in firsts for j in range(i + 1, models)]


def _sketch(x: Tensor, has_base: bool, rows: PieceRows, sums: Sums) -> None:
    k, n = x.shape
    # Rounded to float32 if they are not; the estimate errs by more.
    deltas = x.float().view(k, -1, rows.length)
    projected = (deltas[1:] @ _directions(rows.length)).double()
    if not has_base:
        zero = torch.zeros_like(projected[0])
        ends = [zero, *projected]
        projected = torch.stack([ends[j] - ends[i] for i, j in sketched_pairs(k)])
    start, stop = rows.first, rows.first + n // rows.length
    while start < stop:
        matrix = start // rows.rows
        end = min(stop, (matrix + 1) * rows.rows)
        part = projected[:, start - rows.first : end - rows.first]
        sketch = part.mT @ part
        present = sums.sketches.get(matrix)
        sums.sketches[matrix] = sketch if present is None else present.add_(sketch)
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
