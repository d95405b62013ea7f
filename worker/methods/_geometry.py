"""Lengths and angles of the sources: the Gram matrix of whole tensors, of rows, of columns.

Whole tensors of 16 bits: products in float32 over runs of RUN, runs and blocks added in float64 in
the order of the grid. That errs by some 1e-8, and coefficients depend on small angles to second
order only. Everything else is float64 throughout.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from ._define import Block, Final, Reduce, Task

if TYPE_CHECKING:
    from torch import Tensor

RUN = 4096
"""Elements of which the products are added in float32."""


class Vectors(Enum):
    """What a method takes for one vector."""

    WHOLE = "whole"  # the tensor
    ROWS = "rows"  # each run of elements along the last axis
    COLUMNS = "columns"  # each run of elements along the first axis


def fill(into: Tensor, block: Block, part: slice, centre: Tensor | None) -> Tensor:
    """The models of `block`, or their deltas where there is a `centre`: into [..., model, n]."""
    shape = into[..., 0, :].shape
    vectors = into.shape[-2]
    for number in range(vectors):
        into[..., number, :].copy_(block.tensors[number].view(-1)[part].view(shape))
    if centre is not None:
        centre = centre.view(shape).copy_(block.tensors[-1].view(-1)[part].view(shape))
        into.sub_(centre.unsqueeze(-2))
    return into


@dataclass
class WholeGram(Reduce):
    """The Gram matrix of `vectors` tensors, less the last source if `deltas`; then the rest."""

    vectors: int
    deltas: bool
    dtype: str
    then: Callable[[Tensor], Final]

    def look(self, block: Block) -> Tensor:
        count = block.tensors[0].numel()
        whole = count - count % RUN
        parts = [(slice(0, whole), RUN), (slice(whole, count), count - whole)]
        grams = [self._gram(block, part, run) for part, run in parts if part.stop > part.start]
        return sum(grams[1:], grams[0])

    def _gram(self, block: Block, part: slice, run: int) -> Tensor:
        import torch

        count, k = part.stop - part.start, self.vectors
        flat = block.scratch.take("vectors", count * k, self.dtype)
        centre = block.scratch.take("centre", count, self.dtype) if self.deltas else None
        x = fill(flat.view(count // run, k, run), block, part, centre)
        gram = torch.zeros(k, k, dtype=torch.float64)
        # MKL takes eight times as long for four or more rows of float64 as for two at a time.
        step = 2 if self.dtype == "float64" else k
        for i in range(0, k, step):
            products = torch.bmm(x[:, i : i + step], x[:, i:].mT)
            gram[i : i + step, i:] = products.cpu().sum(0, dtype=torch.float64)
        return gram

    def finish(self, partials: Sequence[Tensor]) -> Final:
        import torch

        gram = torch.zeros(self.vectors, self.vectors, dtype=torch.float64)
        if partials:
            gram += torch.stack(list(partials)).sum(0)
        return self.then(gram.triu() + gram.triu(1).mT)


def vector_gram(x: Tensor, product: Tensor, axis: int) -> Tensor:
    """Gram matrices [model, model, …] of x [model, rows, columns] along an axis, kept as 1."""
    import torch

    k = len(x)
    entries = {
        (i, j): torch.mul(x[i], x[j], out=product).sum(axis, keepdim=True)
        for i in range(k)
        for j in range(i, k)
    }
    rows = [[entries[min(i, j), max(i, j)] for j in range(k)] for i in range(k)]
    return torch.stack([torch.stack(row) for row in rows])


@dataclass
class _PerVector:
    """What passes over rows or columns share: the sources of a block as float64 matrices."""

    vectors: int
    deltas: bool
    length: int  # of the last axis of a block's matrices

    def matrices(self, block: Block) -> tuple[Tensor, Tensor]:
        """The models or deltas [model, rows, length]; scratch of one matrix (the base, if any)."""
        count = block.tensors[0].numel()
        x = block.scratch.take("vectors", count * self.vectors, "float64")
        spare = block.scratch.take("centre", count, "float64")
        # fill() wants the model as the last axis but one.
        x = x.view(self.vectors, count)
        fill(x, block, slice(0, count), spare if self.deltas else None)
        shape = (count // self.length, self.length)
        return x.view(self.vectors, *shape), spare.view(shape)


@dataclass
class VectorSum(_PerVector, Final):
    """Every row, or every column, of the result with coefficients of its own."""

    coefficients: Callable[[Tensor], list[Tensor]]  # of Gram matrices
    gram: Tensor | None = None  # of the columns; rows find theirs in the block

    def merge(self, block: Block, out: Tensor) -> None:
        x, spare = self.matrices(block)
        product = block.scratch.take("product", spare.numel(), "float64").view(spare.shape)
        gram = vector_gram(x, product, 1) if self.gram is None else self.gram.to(x.device)
        # NaN for the whole vector, as for whole tensors: branches on an angle would hide it.
        known = gram.isfinite().all(0).all(0)
        c = [part.where(known, math.nan) for part in self.coefficients(gram)]
        total = x[0].mul_(c[0])
        for number in range(1, self.vectors):
            total.addcmul_(x[number], c[number])
        if self.deltas:
            total.add_(spare)
        out.copy_(total.view(out.shape))


@dataclass
class ColumnGram(_PerVector, Reduce):
    """Gram matrices of all columns. Blocks are added up as they come, in the order of the grid.

    One result per block would take as much memory as the tensor where rows are long.
    """

    coefficients: Callable[[Tensor], list[Tensor]]
    _total: Tensor | None = None
    _next: int = 0
    _waiting: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, block: Block) -> None:
        x, spare = self.matrices(block)
        gram = vector_gram(x, spare, 0).cpu()
        with self._lock:
            self._waiting[block.start] = (block.start + spare.numel(), gram)
            while self._next in self._waiting:
                self._next, part = self._waiting.pop(self._next)
                self._total = part if self._total is None else self._total.add_(part)

    def finish(self, partials: Sequence[None]) -> Final:
        return VectorSum(self.vectors, self.deltas, self.length, self.coefficients, self._total)


def shape_of_vectors(task: Task, vectors: Vectors) -> tuple[Vectors, int]:
    """How a block's elements form matrices: the axis that counts, and the length of its rows."""
    if vectors is Vectors.COLUMNS and len(task.shape) > 1:
        return vectors, math.prod(task.shape[1:])
    return Vectors.ROWS, task.shape[-1] if task.shape else 1
