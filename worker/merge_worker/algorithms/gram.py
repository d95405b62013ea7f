"""Lengths and angles of the sources: the Gram matrix of whole tensors, of rows, of columns.

Whole tensors of 16 bits: products in float32 over runs of RUN, runs and blocks added in float64 in
the order of the grid. That errs by some 5e-8, and coefficients depend on small angles to second
order only. Everything else is float64 throughout.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from ..method import Block, MergePass, StatisticsPass, Task

if TYPE_CHECKING:
    from torch import Tensor


RUN = 256
"""Elements of which the products are added in float32. On processors where one number takes up all
products of a run, 1024 err by 3e-7 and take a tenth less time."""


class Vectors(Enum):
    """What a method takes for one vector."""

    WHOLE = "whole"  # the tensor
    ROWS = "rows"  # each run of elements along the last axis
    COLUMNS = "columns"  # each run of elements along the first axis


@dataclass
class WholeGram(StatisticsPass):
    """The Gram matrix of `vectors` tensors, less the last source if `deltas`; then the rest."""

    vectors: int
    deltas: bool
    dtype: str
    then: Callable[[Tensor], MergePass]

    def collect(self, block: Block) -> list[list[Tensor]]:
        """Products by run and group of rows. Adding them up waits: a block bears few calls."""
        count = block.tensors[0].numel()
        whole = count - count % RUN
        parts = [(0, whole, RUN), (whole, count - whole, count - whole)]
        return [self._products(block, *part) for part in parts if part[1]]

    def _products(self, block: Block, start: int, count: int, run: int) -> list[Tensor]:
        import torch

        k, runs = self.vectors, count // run
        x = block.scratch.take("vectors", count * k, self.dtype).view(runs, k, run)
        sources = [values.narrow(0, start, count).view(runs, run) for values in block.tensors]
        for into, values in zip(x.unbind(1), sources, strict=False):
            into.copy_(values)
        if self.deltas:
            base = block.scratch.take("base", count, self.dtype).view(runs, 1, run)
            base.squeeze(1).copy_(sources[-1])
            x.sub_(base)
        return [torch.bmm(x[:, rows], x.mT).cpu() for rows in self._groups()]

    def _groups(self) -> list[slice]:
        # MKL takes eight times as long for four or more rows of float64 as for two at a time.
        step = 2 if self.dtype == "float64" else self.vectors
        return [slice(i, i + step) for i in range(0, self.vectors, step)]

    def next_pass(self, partials: Sequence[list[list[Tensor]]]) -> MergePass:
        import torch

        products = [part for partial in partials for part in partial]
        if not products:
            return self.then(torch.zeros(self.vectors, self.vectors, dtype=torch.float64))
        rows = [
            torch.cat(group).sum(0, dtype=torch.float64) for group in zip(*products, strict=True)
        ]
        gram = torch.cat(rows)
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
        shape = (block.tensors[0].numel() // self.length, self.length)
        count = shape[0] * shape[1]
        x = block.scratch.take("vectors", count * self.vectors, "float64")
        x = x.view(self.vectors, *shape)
        spare = block.scratch.take("base", count, "float64").view(shape)
        for into, values in zip(x, block.tensors, strict=False):
            into.copy_(values.view(shape))
        if self.deltas:
            x.sub_(spare.copy_(block.tensors[-1].view(shape)))
        return x, spare


@dataclass
class VectorSum(_PerVector, MergePass):
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
class ColumnGram(_PerVector, StatisticsPass):
    """Gram matrices of all columns. Blocks are added up as they come, in the order of the grid.

    One result per block would take as much memory as the tensor where rows are long.
    """

    coefficients: Callable[[Tensor], list[Tensor]]
    _total: Tensor | None = None
    _next: int = 0
    _waiting: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def collect(self, block: Block) -> None:
        x, spare = self.matrices(block)
        gram = vector_gram(x, spare, 0).cpu()
        with self._lock:
            self._waiting[block.start] = (block.start + spare.numel(), gram)
            while self._next in self._waiting:
                self._next, part = self._waiting.pop(self._next)
                self._total = part if self._total is None else self._total.add_(part)

    def next_pass(self, partials: Sequence[None]) -> MergePass:
        return VectorSum(self.vectors, self.deltas, self.length, self.coefficients, self._total)


def shape_of_vectors(task: Task, vectors: Vectors) -> tuple[Vectors, int]:
    """How a block's elements form matrices: the axis that counts, and the length of its rows."""
    if vectors is Vectors.COLUMNS and len(task.shape) > 1:
        return vectors, math.prod(task.shape[1:])
    return Vectors.ROWS, task.shape[-1] if task.shape else 1
