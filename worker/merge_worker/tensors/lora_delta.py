"""Base plus LoRA update, base + scale · B A, computed in blocks of rows while reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .source import BufferSize, DerivedTensor, Reader, buffer_size

if TYPE_CHECKING:
    from torch import Tensor


CHUNK = 1 << 17
"""Elements computed at a time. The grid of chunks depends on the tensor alone, not on the range
read, so that a matrix product always has the same shape and the same rounding."""


@dataclass(frozen=True)
class LoraTensor(DerivedTensor):
    """One or more matrices (`sheet`: rows, columns), each with a low-rank delta.

    `inputs`: the base, A (`experts` times rank rows), B (rank times `experts` columns, expert by
    expert within each rank) and for DoRA the magnitudes. The sheets belong to the experts from
    `expert` on, and begin at row `row` of the delta, which is (B A)ᵀ if `transposed`.
    """

    kind = "LowRank"

    sheet: tuple[int, int] = (0, 0)
    scale: float = 1.0
    experts: int = 1
    expert: int = 0
    row: int = 0
    transposed: bool = False
    _norms: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def rank(self) -> int:
        return self.inputs[1].shape[0] // self.experts

    @property
    def step(self) -> int:
        """Number of rows in a chunk."""
        return max(1, CHUNK // max(1, self.sheet[1]))

    def fingerprint(self) -> object:
        return [*self.sheet, self.scale, self.experts, self.expert, self.row, self.transposed]

    def buffer_size(self) -> BufferSize:
        wide, (rows, columns) = self.dtype.bytes, self.sheet
        stored = max(buffer_size(source).per_element for source in self.inputs[1:])
        base, strided = buffer_size(self.inputs[0]), self.rank * self.experts * stored
        # The right factor, as stored and as used, and the current chunk.
        fixed = columns * (self.rank * 2 * wide + strided)
        fixed += min(rows, self.step) * columns * (base.per_element + wide) + base.fixed
        left = -(-(self.rank * 2 * wide + strided) // max(1, columns))
        return BufferSize(left, fixed)

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        rows, columns = self.sheet
        size = rows * columns
        for number in range(start // size, -(-stop // size)):
            begin = number * size
            first = max(0, start - begin) // columns
            last = min(rows, -(-(stop - begin) // columns))
            for row, values in self._chunks(reader, number, first, last, slot):
                if len(self.inputs) > 3:
                    self._rescale(reader, row, values, slot)
                at = begin + row * columns
                low, high = max(start, at), min(stop, at + values.numel())
                out[low - start : high - start].copy_(values.view(-1)[low - at : high - at])

    def _chunks(
        self, reader: Reader, number: int, first: int, last: int, slot: str
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the chunks that cover rows [first, last) of a sheet: first row, values."""
        import torch

        wide = getattr(torch, self.dtype.torch_name)
        rows, columns = self.sheet
        first = first // self.step * self.step
        last = min(rows, -(-last // self.step) * self.step)
        expert, sheet = self.expert + number, number * rows * columns
        span = (self.row + first, self.row + last)
        if self.transposed:
            left = self._a(reader, expert, span, slot).to(wide).mT
            right = self._b(reader, expert, (0, columns), slot).to(wide).mT
        else:
            left = self._b(reader, expert, span, slot).to(wide)
            right = self._a(reader, expert, (0, columns), slot).to(wide)
        right = right.contiguous()
        for row in range(first, last, self.step):
            end = min(last, row + self.step)
            span = (sheet + row * columns, sheet + end * columns)
            base = reader.read(self.inputs[0], *span, f"{slot}base")
            values = base.to(wide, copy=True).view(end - row, columns)
            some = left[row - first : end - first].contiguous()
            yield row, values.addmm_(some, right, alpha=self.scale)

    def _a(self, reader: Reader, expert: int, columns: tuple[int, int], slot: str) -> Tensor:
        """Read a range of columns of an expert's rows in A."""
        import torch

        source, (first, last) = self.inputs[1], columns
        width = source.count // source.shape[0]
        begin = expert * self.rank * width
        if (first, last) == (0, width):
            return reader.read(source, begin, begin + self.rank * width, f"{slot}a").view(-1, width)
        values = torch.empty(self.rank, last - first, dtype=getattr(torch, source.dtype.torch_name))
        for row in values:
            row.copy_(reader.read(source, begin + first, begin + last, f"{slot}a"))
            begin += width
        return values

    def _b(self, reader: Reader, expert: int, rows: tuple[int, int], slot: str) -> Tensor:
        """Read rows of B, with the columns of an expert."""
        source, width = self.inputs[2], self.inputs[1].shape[0]
        values = reader.read(source, rows[0] * width, rows[1] * width, f"{slot}b")
        return values.view(-1, width)[:, expert :: self.experts]

    def _rescale(self, reader: Reader, row: int, values: Tensor, slot: str) -> None:
        """Scale rows (of a transposed weight: columns) to the norms that DoRA trained."""
        import torch

        source = self.inputs[3]
        first, count = (0, source.count) if self.transposed else (row, len(values))
        magnitudes = reader.read(source, first, first + count, f"{slot}m").to(torch.float64)
        if self.transposed:
            norms = self._column_norms(reader, slot)
            values.mul_((magnitudes / norms).to(values))
        else:
            norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
            values.mul_((magnitudes / norms).to(values)[:, None])

    def _column_norms(self, reader: Reader, slot: str) -> Tensor:
        """Return the norms of the columns, computed once in a pass over the tensor."""
        import torch

        with self._lock:
            if not self._norms:
                squares = torch.zeros(self.sheet[1], dtype=torch.float64)
                for _, values in self._chunks(reader, 0, 0, self.sheet[0], f"{slot}n"):
                    squares += values.to(torch.float64).square_().sum(0)
                self._norms[0] = squares.sqrt_()
            return self._norms[0]


@dataclass(frozen=True)
class OffsetTensor(DerivedTensor):
    """A bias plus `scale` times the bias of an adapter."""

    kind = "Shifted"

    scale: float = 1.0

    def fingerprint(self) -> object:
        return self.scale

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        out.copy_(reader.read(self.inputs[0], start, stop, f"{slot}base"))
        shift = reader.read(self.inputs[1], start, stop, f"{slot}b")
        out.add_(shift.to(out), alpha=self.scale)
