"""Gram matrices (dot products) of the sources: of whole tensors, of their rows, of their columns.

Whole tensors of 16 bits: products in float32 over runs of RUN elements; sums of runs and blocks in
float64, in the order of the grid. The relative error is about 5e-8, and coefficients depend on
small angles to second order only. Everything else is float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from ..method import Block, MergePass, StatisticsPass, Tensor
from .tree_sum import TreeSum

RUN = 256
"""Elements whose products are added in float32. On processors that accumulate a run in a single
register, 1024 elements err by 3e-7 and take a tenth less time."""

PRODUCTS = 1 << 18
"""Products that exist at a time: those of all runs of a block would outweigh it for many models."""

CANCELS = {"float32": 1e-2, "float64": 1e-6}
"""Part that is left of the square of a sum of vectors, as against vectors at right angles, below
which a Gram matrix of that precision does not give the length of the sum to four digits more than
a result shows."""


class Vectors(Enum):
    """The part of a tensor that a method treats as one vector."""

    TENSOR = "tensor"
    ROWS = "rows"  # each run of elements along the last axis
    COLUMNS = "columns"  # each run of elements along the first axis


@dataclass
class TensorGram(StatisticsPass):
    """The pass that computes the Gram matrix of the first `vectors` sources, of `count` elements.

    With `subtract_base` the last source is subtracted from each. `then` receives the matrix
    [vectors, vectors] as a float64 tensor and returns the pass that follows.
    """

    vectors: int
    subtract_base: bool
    dtype: str
    count: int
    then: Callable[[Tensor], StatisticsPass | MergePass]

    def __post_init__(self) -> None:
        self._sum = TreeSum(self.count)

    def collect(self, block: Block) -> None:
        count = block.tensors[0].numel()
        whole = count - count % RUN
        parts = [(0, whole, RUN), (whole, count - whole, count - whole)]
        first, *rest = [self._products(block, *part) for part in parts if part[1]]
        self._sum.add(block, first.add_(rest[0]) if rest else first)

    def _products(self, block: Block, start: int, count: int, run: int) -> Tensor:
        """Return the dot products over a part of a block, added up in float64."""
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
        gram = torch.zeros(k, k, dtype=torch.float64)
        for some in x.split(max(1, PRODUCTS // (k * k))):  # type: ignore[no-untyped-call]
            for i in range(0, k, step):
                products = torch.bmm(some[:, i : i + step], some.mT)
                gram[i : i + step].add_(products.sum(0, dtype=torch.float64).cpu())
        return gram

    def next_pass(self, partials: Sequence[None]) -> StatisticsPass | MergePass:
        import torch

        gram = self._sum.total()
        if gram is None:
            gram = torch.zeros(self.vectors, self.vectors, dtype=torch.float64)
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
    """The pass that computes the Gram matrices of all columns, in a tensor of `count` elements."""

    coefficients: Callable[[Tensor], list[Tensor]]
    count: int

    def __post_init__(self) -> None:
        self._sum = TreeSum(self.count)

    def collect(self, block: Block) -> None:
        x, spare = self.matrices(block)
        self._sum.add(block, vector_gram(x, spare, 0).cpu())

    def next_pass(self, partials: Sequence[None]) -> MergePass:
        gram = self._sum.total()
        return PerVectorSum(self.vectors, self.subtract_base, self.length, self.coefficients, gram)


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


class CancellationError(Exception):
    """Vectors cancel, and their Gram matrix is not precise enough to tell what is left.

    `coefficients`: those of a sum whose length is wanted; empty if a better matrix will do.
    """

    def __init__(self, coefficients: Sequence[float] = ()) -> None:
        super().__init__(coefficients)
        self.coefficients = tuple(coefficients)


KnownLength = tuple[tuple[float, ...], float]
"""Coefficients, and the length of the sum that they give."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of combinations of vectors, as methods ask for them.

    They follow from the Gram matrix, of products in `work`. Where the terms cancel, a method is
    interrupted by CancellationError and called again with what it needs: a Gram matrix in float64,
    then the length of the sum itself, `known` by its coefficients.
    """

    gram: Sequence[Sequence[float]]
    work: str = "float64"
    known: KnownLength = ((), 0.0)

    def __call__(self, coefficients: Sequence[float]) -> float:
        """Return ‖Σ c_i x_i‖."""
        if tuple(coefficients) == self.known[0]:
            return self.known[1]
        length = combined_length(coefficients, self.gram)
        apart = math.fsum(
            c * c * row[i] for i, (c, row) in enumerate(zip(coefficients, self.gram, strict=True))
        )
        if length * length < CANCELS[self.work] * apart:
            raise CancellationError(coefficients if self.work == "float64" else ())
        return length

    def must_be_exact(self) -> None:
        """Interrupt the method unless dot products are in float64."""
        if self.work != "float64":
            raise CancellationError


def combined_length(coefficients: Sequence[float], gram: Sequence[Sequence[float]]) -> float:
    """Return ‖Σ c_i x_i‖ = √(cᵀ G c), given the Gram matrix G of the x_i."""
    terms = (
        a * b * g
        for a, row in zip(coefficients, gram, strict=True)
        for b, g in zip(coefficients, row, strict=True)
    )
    return math.sqrt(max(0.0, math.fsum(terms)))
