"""Importance of tensors: a source beside each model, its figures, and forms that take less room.

An importance source has the shape of its tensor, so that every rearrangement of the tensor applies
to it as well. What is stored as one number per channel, or as sums of rows and columns, is spread
while it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..dtypes import BY_NAME, DType
from .source import BufferSize, DerivedTensor, Reader, TensorSource, buffer_size
from .views import reshape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Figures:
    """Figures of one importance tensor, which are measured before the merge that needs them.

    `sample` holds values at places that are the same for all tensors of one size.
    """

    largest: float = math.nan
    total: float = math.nan
    norm: float = math.nan  # square root of the sum of squares
    count: int = 0
    sample: Any = field(default=None, repr=False)

    @property
    def measured(self) -> bool:
        return not math.isnan(self.largest)


@dataclass(eq=False)
class ModelFigures:
    """Figures of all importance tensors of one model that a merge reads."""

    label: str
    tensors: list[Figures] = field(default_factory=list, repr=False)

    @property
    def norm(self) -> float:
        """The norm over all tensors."""
        return math.hypot(*(figures.norm for figures in self.tensors))


@dataclass(frozen=True, eq=False)
class Importance:
    """Importance of one source of a task: its place among the sources of a block, its figures."""

    index: int
    figures: Figures
    model: ModelFigures


@dataclass(frozen=True)
class SpreadTensor(DerivedTensor):
    """The input repeated along the axes in which its extent is 1, to the shape of a tensor.

    With `relative`, every value is divided by the largest (AIM's s_j); zeros stay zeros.
    """

    kind = "Spread"

    relative: bool = False

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        import torch

        source = self.inputs[0]
        values = reader.read(source, 0, source.count, slot + "0")
        if self.relative:
            values = _relative(values.to(out.dtype))
        shape = (1,) * (len(self.shape) - len(source.shape)) + source.shape
        length = self.shape[-1] if self.shape else 1
        rows = torch.arange(start // length, -(-stop // length))
        place = torch.zeros_like(rows)
        outer = [(extent, own) for extent, own in zip(self.shape[:-1], shape[:-1], strict=True)]
        rest, stride = rows, 1
        for extent, own in reversed(outer):
            if own != 1:
                place += rest % extent * stride
                stride *= own
            rest = rest // extent
        picked = values.view(-1, shape[-1] if shape else 1)[place].expand(len(rows), length)
        skip = start - start // length * length
        out.copy_(picked.reshape(-1)[skip : skip + stop - start])

    def fingerprint(self) -> object:
        return [self.shape, self.relative]

    def buffer_size(self) -> BufferSize:
        inner, size = buffer_size(self.inputs[0]), self.inputs[0].dtype.bytes
        whole = self.inputs[0].count * (inner.per_element + size + self.dtype.bytes) + inner.fixed
        # The values picked for a range of rows, and once more as one run.
        length = self.shape[-1] if self.shape else 1
        return BufferSize(2 * size, whole + 4 * length * size)


def _relative(values: Tensor) -> Tensor:
    largest = float(values.max()) if values.numel() else 0.0
    return values / largest if largest > 0 else values.zero_()


@dataclass(frozen=True)
class OuterTensor(DerivedTensor):
    """Adafactor's estimate row ⊗ column / mean(row) of second moments, for matrices.

    The inputs are one number per row, shape [..., rows], and per column, [..., columns].
    """

    kind = "Outer"

    @classmethod
    def of(cls, row: TensorSource, column: TensorSource, name: str) -> OuterTensor:
        """Return the estimate of a matrix, or of a stack of them, from its two sums."""
        if row.shape[-1:] == (1,):  # torch keeps the axis that was summed
            row = reshape(row, row.shape[:-1], row.name)
        if column.shape[-2:-1] == (1,):
            shape = (*column.shape[:-2], column.shape[-1])
            column = reshape(column, shape, column.name)
        shape = (*row.shape, *column.shape[-1:])
        return cls(name, BY_NAME["F32"], shape, (row, column))

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        height, width = self.shape[-2:]
        column = reader.read(self.inputs[1], 0, self.inputs[1].count, slot + "1").double()
        row = reader.read(self.inputs[0], 0, self.inputs[0].count, slot + "0").double()
        row = row.view(-1, height)
        means = row.mean(1, keepdim=True)
        row = (row / means.where(means > 0, means.new_ones(()))).view(-1)
        first, last = start // width, -(-stop // width)
        at = first
        pieces = []
        while at < last:  # one matrix at a time
            matrix = at // height
            end = min(last, (matrix + 1) * height)
            pieces.append(row[at:end, None] * column.view(-1, width)[matrix])
            at = end
        skip = start - first * width
        for piece in pieces:
            flat = piece.view(-1)[skip:]
            taken = min(len(flat), len(out))
            out[:taken].copy_(flat[:taken])
            out, skip = out[taken:], 0

    def fingerprint(self) -> object:
        return self.shape

    def buffer_size(self) -> BufferSize:
        fixed = sum(source.count * (source.dtype.bytes + 16) for source in self.inputs)
        return BufferSize(8, fixed + 16 * self.shape[-1])


@dataclass(frozen=True)
class ZeroTensor(DerivedTensor):
    """Zeros, in place of importance that a file does not have."""

    kind = "Zeros"

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        out.zero_()

    def fingerprint(self) -> object:
        return self.shape


def spread(
    source: TensorSource, shape: tuple[int, ...], name: str, *, relative: bool = False
) -> TensorSource | None:
    """Return a source repeated to `shape`; None if its axes do not fit, by numpy's rules."""
    own = (1,) * (len(shape) - len(source.shape)) + source.shape
    fits = len(own) == len(shape) and all(a in (1, b) for a, b in zip(own, shape, strict=True))
    if not fits:
        return None
    if own == shape and not relative:
        return reshape(source, shape, name)
    return SpreadTensor(name, source.dtype, shape, (source,), relative=relative)


def zeros(shape: tuple[int, ...], name: str, dtype: DType = BY_NAME["F32"]) -> TensorSource:
    return ZeroTensor(name, dtype, shape, ())
