"""Rearranged tensors: slices, strides, concatenations, stacks, transposes, reshapes.

A contiguous slice of a stored tensor is a stored tensor itself; anything else is derived, and read
as the contiguous ranges that it consists of.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

from ..dtypes import BY_NAME, DType
from .source import BufferSize, DerivedTensor, Reader, StoredTensor, TensorSource, buffer_size

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SlicedTensor(DerivedTensor):
    """Columns [first, first + taken) of the input, viewed as rows of `width`."""

    kind = "Sliced"

    width: int = 1
    first: int = 0
    taken: int = 1

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        for begin, end in by_row(start, stop, self.taken):
            rows = max(1, (end - begin) // self.taken)
            row, column = divmod(begin, self.taken)
            at = row * self.width + self.first + column
            span = (rows - 1) * self.width + (end - begin) - (rows - 1) * self.taken
            values = reader.read(self.inputs[0], at, at + span, slot + "0")
            into = out[begin - start : end - start].view(rows, -1)
            into.copy_(values.as_strided(into.shape, (self.width, 1)))

    def fingerprint(self) -> object:
        return [self.width, self.first, self.taken]

    def buffer_size(self) -> BufferSize:
        inner = buffer_size(self.inputs[0])
        rows = self.count // max(1, self.taken)  # of one row only what is taken is read
        times = -(-self.width // max(1, self.taken)) if rows > 1 else 1
        return BufferSize(inner.per_element * times, inner.fixed)


@dataclass(frozen=True)
class ConcatTensor(DerivedTensor):
    """The inputs side by side, each viewed as `rows` rows."""

    kind = "Joined"

    rows: int = 1

    @cached_property
    def columns(self) -> list[int]:
        """Offsets in a row at which each input begins, and the length of the row."""
        return list(accumulate((part.count // self.rows for part in self.inputs), initial=0))

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        columns = self.columns
        for begin, end in by_row(start, stop, columns[-1]):
            row, column = divmod(begin, columns[-1])
            rows = max(1, (end - begin) // columns[-1])
            into = out[begin - start : end - start].view(rows, -1)
            number = bisect_right(columns, column) - 1
            while number < len(self.inputs) and columns[number] < column + into.shape[1]:
                size = columns[number + 1] - columns[number]
                first = max(column, columns[number])
                last = min(column + into.shape[1], columns[number + 1])
                here = row * size + first - columns[number]
                run = (rows - 1) * size + last - first
                values = reader.read(self.inputs[number], here, here + run, slot + "0")
                into[:, first - column : last - column].copy_(values.view(rows, -1))
                number += 1

    def fingerprint(self) -> object:
        return [self.rows, [part.count for part in self.inputs]]

    def buffer_size(self) -> BufferSize:
        sizes = [buffer_size(source) for source in self.inputs]
        return BufferSize(max(s.per_element for s in sizes), max(s.fixed for s in sizes))


@dataclass(frozen=True)
class TransposedTensor(DerivedTensor):
    """The input with its last two axes exchanged. Reads a slab of columns at a time."""

    kind = "Transposed"

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        height, width = self.shape[-2:]  # the input has `width` rows of `height`
        for begin, end in by_row(start, stop, height * width, whole=False):
            matrix, place = divmod(begin, height * width)
            first, last = place // width, -(-(place + end - begin) // width)
            slab = out.new_empty((last - first, width))
            for column in range(width):
                at = matrix * height * width + column * height
                values = reader.read(self.inputs[0], at + first, at + last, slot + "0")
                slab[:, column].copy_(values)
            skip = place - first * width
            out[begin - start : end - start].copy_(slab.view(-1)[skip : skip + end - begin])

    def fingerprint(self) -> object:
        return self.shape[-2:]

    def buffer_size(self) -> BufferSize:
        inner, size = buffer_size(self.inputs[0]), self.dtype.bytes
        return BufferSize(inner.per_element + size, inner.fixed + 2 * self.shape[-1] * size)


def by_row(start: int, stop: int, width: int, *, whole: bool = True) -> Iterator[tuple[int, int]]:
    """Split a range at rows of `width`: end of a row, whole rows together, begin of a row."""
    while start < stop:
        if start % width == 0 and stop - start >= width:
            end = stop - stop % width if whole else start + width
        else:
            end = min(stop, start + width - start % width)
        yield start, end
        start = end


def slice_axis(source: TensorSource, axis: int, first: int, stop: int, name: str) -> TensorSource:
    """Return elements [first, stop) along an axis."""
    shape = (*source.shape[:axis], stop - first, *source.shape[axis + 1 :])
    inner = prod(source.shape[axis + 1 :])
    return _columns(source, name, shape, source.shape[axis] * inner, first * inner)


def strided(source: TensorSource, axis: int, step: int, first: int, name: str) -> TensorSource:
    """Return every `step`-th element along an axis, from `first` on."""
    shape = (*source.shape[:axis], source.shape[axis] // step, *source.shape[axis + 1 :])
    inner = prod(source.shape[axis + 1 :])
    return _columns(source, name, shape, step * inner, first * inner)


def _columns(
    source: TensorSource, name: str, shape: tuple[int, ...], width: int, first: int
) -> TensorSource:
    rows, dtype = max(1, prod(source.shape) // max(1, width)), source.dtype
    if rows == 1 and isinstance(source, StoredTensor):
        offset, nbytes = source.offset + first * dtype.bytes, prod(shape) * dtype.bytes
        return replace(source, name=name, shape=shape, offset=offset, nbytes=nbytes)
    taken, declared = prod(shape) // rows, source.declared_dtype
    return SlicedTensor(name, dtype, shape, (source,), declared, width, first, taken)


def concat(sources: Sequence[TensorSource], axis: int, name: str) -> TensorSource:
    """Concatenate sources along an axis. ValueError if the other axes differ."""
    first = sources[0]
    others = {s.shape[:axis] + s.shape[axis + 1 :] for s in sources}
    if len(others) > 1:
        raise ValueError(_unlike(sources))
    extent = sum(source.shape[axis] for source in sources)
    shape = (*first.shape[:axis], extent, *first.shape[axis + 1 :])
    return _joined(sources, name, shape, prod(first.shape[:axis]))


def interleave(sources: Sequence[TensorSource], axis: int, name: str) -> TensorSource:
    """Interleave sources along an axis, one entry of each in turn. ValueError if shapes differ."""
    first = sources[0]
    if any(source.shape != first.shape for source in sources):
        raise ValueError(_unlike(sources))
    shape = (*first.shape[:axis], first.shape[axis] * len(sources), *first.shape[axis + 1 :])
    return _joined(sources, name, shape, prod(first.shape[: axis + 1]))


def stack(sources: Sequence[TensorSource], name: str) -> TensorSource:
    """Stack sources along a new first axis. ValueError if shapes differ."""
    first = sources[0]
    if any(source.shape != first.shape for source in sources):
        raise ValueError(_unlike(sources))
    return _joined(sources, name, (len(sources), *first.shape), 1)


def _unlike(sources: Sequence[TensorSource]) -> str:
    first = sources[0]
    other = next(source for source in sources if source.shape != first.shape)
    return (
        f"{first.name} is {list(first.shape)}, but {other.name} is {list(other.shape)}; "
        f"they do not fit together"
    )


def _joined(
    sources: Sequence[TensorSource], name: str, shape: tuple[int, ...], rows: int
) -> TensorSource:
    if len(sources) == 1:
        return reshape(sources[0], shape, name)
    inputs: list[TensorSource] = []
    for source in sources:  # flatten nested concatenations: fewer copies on the way
        inner = isinstance(source, ConcatTensor) and source.rows == rows
        inputs += source.inputs if inner and isinstance(source, ConcatTensor) else [source]
    declared = sources[0].declared_dtype
    return ConcatTensor(name, _common(inputs), shape, tuple(inputs), declared, max(1, rows))


def _common(inputs: Sequence[TensorSource]) -> DType:
    """Return a dtype that holds the values of all inputs."""
    dtypes = {source.dtype for source in inputs}
    if len(dtypes) == 1:
        return dtypes.pop()
    return BY_NAME["F64" if any(dtype.bits > 32 for dtype in dtypes) else "F32"]


def transpose(source: TensorSource, name: str) -> TensorSource:
    """Exchange the last two axes. ValueError if there are fewer than two."""
    if len(source.shape) < 2:
        raise ValueError(f"{source.name} is {list(source.shape)}; it has no two axes to exchange")
    shape = (*source.shape[:-2], source.shape[-1], source.shape[-2])
    if isinstance(source, TransposedTensor):
        return reshape(source.inputs[0], shape, name)
    return TransposedTensor(name, source.dtype, shape, (source,), source.declared_dtype)


def reshape(source: TensorSource, shape: tuple[int, ...], name: str) -> TensorSource:
    """Return the elements in their order under another name and shape."""
    if shape != source.shape and not isinstance(source, StoredTensor | SlicedTensor | ConcatTensor):
        return ConcatTensor(name, source.dtype, shape, (source,), source.declared_dtype)
    return replace(source, name=name, shape=shape)
