"""Sources of tensors: stored in a file, or derived from stored ones while reading.

A base with its adapter, a row of a larger vocabulary, half of a fused projection: none of these is
on disk as the merge needs it, and none is ever whole in memory. A derived tensor is an entry of a
checkpoint like a stored one, and computes any range of its elements on request.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from ..dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A stored tensor: `count` elements of `dtype`, row-major, at byte `offset` of `file`.

    `declared_dtype` is the dtype it represents, if a stage stored it wider for the next one. With
    `zip_bytes`, a zip of torch.save is at `offset`, and the elements are in it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    declared_dtype: DType | None = None
    zip_bytes: int = 0

    @property
    def count(self) -> int:
        return self.nbytes * 8 // self.dtype.bits


class BufferSize(NamedTuple):
    """Buffer bytes needed to read a range: bytes per element, plus a fixed number."""

    per_element: int
    fixed: int = 0


class Reader(Protocol):
    """Reads ranges of sources into reusable buffers, each under its own `slot`."""

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        """Return elements [start, stop) in row-major order: 1-D, on the host, source dtype."""

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Return 1-D memory on the host; a slot always yields the same memory."""


@dataclass(frozen=True)
class DerivedTensor(ABC):
    """A tensor computed from `inputs`; `declared_dtype`: the dtype it represents, if another."""

    kind: ClassVar[str]
    """Name of the class in plan keys, which never changes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    inputs: Sequence[TensorSource]
    declared_dtype: DType | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.count * self.dtype.bytes

    @abstractmethod
    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        """Write elements [start, stop) to `out` (1-D, host), using slots that begin with `slot`.

        The bits must not depend on where a range begins and ends.
        """

    @abstractmethod
    def fingerprint(self) -> object:
        """Return JSON of everything but the inputs that determines the values, for plan keys."""

    def stored_bytes(self) -> int:
        """Return the bytes on disk of all that it is made from."""
        return sum(map(bytes_read, self.inputs))

    def buffer_size(self) -> BufferSize:
        """Return the buffers `read_into` needs besides `out`."""
        return add_sizes(buffer_size(source) for source in self.inputs)


TensorSource = StoredTensor | DerivedTensor


def declared_dtype(source: TensorSource) -> DType:
    """Return the dtype a source declares, which may differ from the dtype it is read in."""
    return source.declared_dtype or source.dtype


def buffer_size(source: TensorSource) -> BufferSize:
    """Return the buffers needed to read a source, its values included."""
    values = BufferSize(source.dtype.bytes)
    return values if isinstance(source, StoredTensor) else add_sizes([values, source.buffer_size()])


def bytes_read(source: TensorSource) -> int:
    """Return the bytes read from disk in one pass over a source."""
    if isinstance(source, StoredTensor):
        return source.nbytes
    return source.stored_bytes()


def add_sizes(sizes: Iterable[BufferSize]) -> BufferSize:
    sizes = list(sizes)
    return BufferSize(sum(s.per_element for s in sizes), sum(s.fixed for s in sizes))


def stored_inputs(source: TensorSource) -> Iterator[StoredTensor]:
    """Yield the stored tensors that a source is read from."""
    if isinstance(source, StoredTensor):
        yield source
    else:
        for inner in source.inputs:
            yield from stored_inputs(inner)
