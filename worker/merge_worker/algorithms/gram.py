"""Gram matrices (dot products) of the sources: of whole tensors, of their rows, of their columns.

Whole tensors of 16 bits: products in float32 over runs of RUN elements; sums of runs and blocks in
float64, in the order of the grid. The relative error is about 5e-8, and coefficients depend on
small angles to second order only. Everything else is float64 throughout.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ..method import Block, MergePass, StatisticsPass, Tensor

RUN = 256
"""Elements whose products are added in float32. On processors that accumulate a run in a single
register, 1024 elements err by 3e-7 and take a tenth less time."""


class Vectors(Enum):
    """The part of a tensor that a method treats as one vector."""

    TENSOR = "tensor"
    ROWS = "rows"  # each run of elements along the last axis
    COLUMNS = "columns"  # each run of elements along the first axis


@dataclass
class TensorGram(StatisticsPass):
    """The pass that computes the Gram matrix of the first `vectors` sources.

    With `subtract_base` the last source is subtracted from each. `then` receives the matrix
    [vectors, vectors] as a float64 tensor and returns the merge pass.
    """

    vectors: int
    subtract_base: bool
    dtype: str
    then: Callable[[Tensor], MergePass]

    def collect(self, block: Block) -> list[list[Tensor]]:
        """Return products per run and group of rows; summed later, to keep calls per block few."""
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
        if self.subtract_base:
            base = block.scratch.take("base", count, self.dtype).view(runs, 1, run)
            base.squeeze(1).copy_(sources[-1])
            x.sub_(base)
        # MKL takes eight times as long for four or more rows of float64 as for two at a time.
        step = 2 if self.dtype == "float64" else k
        return [torch.bmm(x[:, i : i + step], x.mT).cpu() for i in range(0, k, step)]

    def next_pass(self, partials: Sequence[list[list[Tensor]]]) -> MergePass:
        import torch

        products = [part for partial in partials for part in partial]
        if not products:
            return self.then(torch.zeros(self.vectors, self.vectors, dtype=torch.float64))
        groups = zip(*products, strict=True)
        gram = torch.cat([torch.cat(rows).sum(0, dtype=torch.float64) for rows in groups])
        return self.then(gram.triu() + gram.triu(1).mT)


@dataclass
class _MatrixPass:
    """The base of passes over rows or columns, which see a block as float64 matrices."""

    vectors: int
    subtract_base: bool
    length: int  # of the last axis of a block's matrices

    def matrices(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the vectors [vectors, rows, length] and scratch of one matrix.

        With `subtract_base` the scratch holds the base.
        """
        shape = (block.tensors[0].numel() // self.length, self.length)
        count = shape[0] * shape[1]
        x = block.scratch.take("vectors", count * self.vectors, "float64")
        x = x.view(self.vectors, *shape)
        spare = block.scratch.take("base", count, "float64").view(shape)
        for into, values in zip(x, block.tensors, strict=False):
            into.copy_(values.view(shape))
        if self.subtract_base:
            x.sub_(spare.copy_(block.tensors[-1].view(shape)))
        return x, spare


@dataclass
class PerVectorSum(_MatrixPass, MergePass):
    """The merge pass in which every row, or every column, has coefficients of its own.

    `coefficients` maps Gram matrices [vectors, vectors, …] to one tensor per vector. `gram` holds
    those of all columns; for rows it is None, since a block contains all it takes to compute them.
    """

    coefficients: Callable[[Tensor], list[Tensor]]
    gram: Tensor | None = None

    def merge(self, block: Block, out: Tensor) -> None:
        x, spare = self.matrices(block)
        product = block.scratch.take("product", spare.numel(), "float64").view(spare.shape)
        gram = vector_gram(x, product, 1) if self.gram is None else self.gram.to(x.device)
        # NaN for the whole vector, as for whole tensors: branches on an angle could hide it.
        finite = gram.isfinite().all(0).all(0)
        c = [part.where(finite, math.nan) for part in self.coefficients(gram)]
        total = x[0].mul_(c[0])
        for number in range(1, self.vectors):
            total.addcmul_(x[number], c[number])
        if self.subtract_base:
            total.add_(spare)
        out.copy_(total.view(out.shape))


@dataclass
class ColumnGram(_MatrixPass, StatisticsPass):
    """The pass that computes the Gram matrices of all columns.

    Blocks are added up as they arrive, in the order of the grid: where rows are long, one partial
    result per block would take as much memory as the tensor.
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
        return PerVectorSum(
            self.vectors, self.subtract_base, self.length, self.coefficients, self._total
        )


def vector_gram(x: Tensor, product: Tensor, axis: int) -> Tensor:
    """Return the Gram matrices [vectors, vectors, …] of x [vectors, rows, columns] along `axis`.

    The summed axis is kept with extent 1. `product` is scratch of one matrix.
    """
    import torch

    k = len(x)
    entries = {
        (i, j): torch.mul(x[i], x[j], out=product).sum(axis, keepdim=True)
        for i in range(k)
        for j in range(i, k)
    }
    rows = [[entries[min(i, j), max(i, j)] for j in range(k)] for i in range(k)]
    return torch.stack([torch.stack(row) for row in rows])


def combined_length(coefficients: Sequence[float], gram: Sequence[Sequence[float]]) -> float:
    """Return ‖Σ c_i x_i‖ = √(cᵀ G c), given the Gram matrix G of the x_i."""
    terms = (
        a * b * g
        for a, row in zip(coefficients, gram, strict=True)
        for b, g in zip(coefficients, row, strict=True)
    )
    return math.sqrt(max(0.0, math.fsum(terms)))
