"""Tensors stored as blocks, as torch.distributed.checkpoint saves what its ranks hold.

Shards of rows, of columns and of both are blocks of the whole tensor. A range of its elements is
read from the runs of rows that it has in each block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise, product
from math import prod
from struct import pack
from typing import TYPE_CHECKING, NamedTuple, overload

from ..dtypes import DType
from .source import BufferSize, DerivedTensor, Reader, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

MOST_COMPARISONS = 4_000_000
"""Steps of the check that blocks fill a tensor: a grid takes about two for each block."""


class Chunk(NamedTuple):
    """A block of a tensor and its bytes: `length` of a zip at `offset` of a file, 0 for no zip."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: int  # number in the list of files
    offset: int
    length: int


class Lines(NamedTuple):
    """`lines` lines of `length` elements, `stride` apart in a tensor, together in its block."""

    first: int  # element of the tensor
    lines: int
    length: int
    stride: int
    at: int  # element of the block


@dataclass(frozen=True)
class Chunks(Sequence[StoredTensor]):
    """The blocks of a tensor, by their first elements; packed, since models have 100 000 of them.

    `corners` has offsets and sizes of each block, `places` its file, offset and length of the zip.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    files: tuple[str, ...]
    corners: bytes
    places: bytes

    @classmethod
    def of(
        cls,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        files: tuple[str, ...],
        chunks: Iterable[Chunk],
    ) -> Chunks:
        """Return the blocks of a tensor, those without elements left out."""
        strides = _strides(shape)
        filled = [chunk for chunk in chunks if 0 not in chunk.sizes]
        filled.sort(key=lambda chunk: _dot(chunk.offsets, strides))
        corners = [n for chunk in filled for n in (*chunk.offsets, *chunk.sizes)]
        places = [n for chunk in filled for n in chunk[2:]]
        packed = (pack(f"{len(numbers)}q", *numbers) for numbers in (corners, places))
        return cls(name, dtype, shape, files, *packed)

    def __len__(self) -> int:
        return len(self.places) // 24

    @overload
    def __getitem__(self, index: int) -> StoredTensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[StoredTensor]: ...

    def __getitem__(self, index: int | slice) -> StoredTensor | list[StoredTensor]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = self.chunk(index)
        nbytes = prod(chunk.sizes) * self.dtype.bytes
        file = self.files[chunk.file]
        return StoredTensor(
            *(self.name, self.dtype, chunk.sizes, file, chunk.offset, nbytes),
            zip_bytes=chunk.length,
        )

    def chunk(self, index: int) -> Chunk:
        """Return a block: its corner, its sizes, and where its bytes are."""
        rank = len(self.shape)
        numbers = memoryview(self.corners).cast("q")[2 * rank * index : 2 * rank * (index + 1)]
        file, offset, length = memoryview(self.places).cast("q")[3 * index : 3 * index + 3]
        return Chunk(tuple(numbers[:rank]), tuple(numbers[rank:]), file, offset, length)

    @cached_property
    def _extents(self) -> tuple[list[int], list[int]]:
        """The first element of each block, and the last of it and those before it, plus one."""
        strides = _strides(self.shape)
        chunks = [self.chunk(number) for number in range(len(self))]
        first = [_dot(chunk.offsets, strides) for chunk in chunks]
        lasts = (
            begin + _dot([size - 1 for size in chunk.sizes], strides) + 1
            for begin, chunk in zip(first, chunks, strict=True)
        )
        return first, list(accumulate(lasts, max))

    def overlapping(self, start: int, stop: int) -> range:
        """Return the numbers of the blocks that may have some of the elements [start, stop)."""
        first, last = self._extents
        return range(bisect_right(last, start), bisect_left(first, stop))

    def lines(self, number: int, start: int, stop: int) -> Iterator[Lines]:
        """Yield where the elements [start, stop) of the tensor are in a block."""
        chunk, strides = self.chunk(number), _strides(self.shape)
        offsets, sizes = chunk.offsets, chunk.sizes
        whole = [size == extent for size, extent in zip(sizes, self.shape, strict=True)]
        # Along `axis` the block is cut; its lines there are equally far apart back to `group`.
        axis = max((n for n, all_ in enumerate(whole) if not all_), default=0)
        group = max(axis - 1, 0)
        while group > 0 and whole[group]:
            group -= 1
        length = prod(sizes[axis:])
        stride = self.shape[axis] * strides[axis] if axis else length
        count = prod(sizes[group:axis])
        corner = _dot(offsets, strides)
        for place, outer in enumerate(product(*map(range, sizes[:group]))):
            begin = corner + _dot(outer, strides[:group])
            if begin < stop and begin + (count - 1) * stride + length > start:
                for lines in _clipped(Lines(begin, count, length, stride, 0), start, stop):
                    yield lines._replace(at=lines.at + place * count * length)


@dataclass(frozen=True)
class ChunkedTensor(DerivedTensor):
    """A tensor put together from its blocks, which are its `inputs`.

    `origin` names it in the checkpoint: the digest of the metadata, and the name there.
    """

    kind = "Chunked"

    origin: tuple[str, str] = ("", "")

    @property
    def chunks(self) -> Chunks:
        """The blocks, with their places in the tensor and in the files."""
        assert isinstance(self.inputs, Chunks)
        return self.inputs

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        chunks = self.chunks
        for number in chunks.overlapping(start, stop) if start < stop else ():
            stored = chunks[number]
            for first, count, length, stride, at in chunks.lines(number, start, stop):
                values = reader.read(stored, at, at + count * length, slot + "0")
                into = out[first - start :].as_strided((count, length), (stride, 1))
                into.copy_(values.view(count, length))

    def fingerprint(self) -> object:
        return self.origin

    def stored_bytes(self) -> int:
        return self.nbytes

    def buffer_size(self) -> BufferSize:
        return BufferSize(self.dtype.bytes)


def _clipped(lines: Lines, start: int, stop: int) -> Iterator[Lines]:
    """Yield the parts of lines within [start, stop): a first, the whole ones, a last."""
    first, count, length, stride, _ = lines
    begin = max(0, (start - first - length) // stride + 1)
    end = min(count, -(-(stop - first) // stride))
    cut_first = begin < end and first + begin * stride < start
    cut_last = begin < end and first + (end - 1) * stride + length > stop
    edges = sorted({begin, begin + cut_first, end - cut_last, end} if begin < end else ())
    for one, other in pairwise(edges):
        place = first + one * stride
        skipped = max(0, start - place)
        taken = min(length, stop - place) - skipped
        yield Lines(place + skipped, other - one, taken, stride, one * length + skipped)


def is_tiled(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> bool:
    """Return whether blocks fill a tensor, each element once; those without elements aside.

    ValueError for blocks so irregular that it would take MOST_COMPARISONS to find out.
    """
    filled = [chunk for chunk in chunks if 0 not in chunk.sizes]
    total = prod(shape)
    if sum(prod(chunk.sizes) for chunk in filled) != total:
        return False
    return not total or _fill(shape, filled, 0, [MOST_COMPARISONS])


def _fill(shape: tuple[int, ...], chunks: Sequence[Chunk], axis: int, left: list[int]) -> bool:
    """Return whether blocks fill the axes of a tensor from `axis` on, each element once.

    Between two edges along an axis the same blocks are met; they must fill the other axes.
    """
    left[0] -= len(chunks)
    if left[0] < 0:
        raise ValueError("too many irregular blocks")
    if axis == len(shape):
        return len(chunks) == 1
    by_first = sorted(chunks, key=lambda chunk: chunk.offsets[axis])
    ends = {chunk.offsets[axis] + chunk.sizes[axis] for chunk in chunks}
    edges = sorted({0, shape[axis], *ends, *(chunk.offsets[axis] for chunk in chunks)})
    met, following = list[Chunk](), 0
    for edge in edges[:-1]:
        met = [chunk for chunk in met if chunk.offsets[axis] + chunk.sizes[axis] > edge]
        while following < len(by_first) and by_first[following].offsets[axis] == edge:
            met.append(by_first[following])
            following += 1
        if not met or not _fill(shape, met, axis + 1, left):
            return False
    return edges[-1] == shape[axis]


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the elements between neighbors along each axis of a row-major tensor."""
    return tuple(accumulate(reversed(shape[1:]), int.__mul__, initial=1))[::-1] if shape else ()


def _dot(numbers: Sequence[int], strides: Sequence[int]) -> int:
    return sum(a * b for a, b in zip(numbers, strides, strict=True))
