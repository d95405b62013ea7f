"""What the parts of a step are read from: stored tensors, or tensors derived from them on the way.

An adapter on its base, a row of a larger vocabulary, half of a fused projection: none of these is
on disk as the merge needs it, and none is ever whole in memory. A derived tensor stands in a
checkpoint beside the stored ones and makes any run of its elements when it is asked for them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from ..dtypes import DType

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One stored tensor: `count` elements of `dtype`, row-major, at `offset` of `file`.

    `said` is the dtype that it stands for, where a stage stores it wider for the next one.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    declared_dtype: DType | None = None

    @property
    def count(self) -> int:
        return self.nbytes * 8 // self.dtype.bits


class BufferSize(NamedTuple):
    """Buffer bytes that reading a run takes: so many for each element, and so many in any case."""

    per_element: int
    fixed: int = 0


class Reader(Protocol):
    """Reads runs of sources into buffers that are reused, each under its own `slot`."""

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        """Elements [start, stop) in row-major order: 1-D, on the host, in the source's dtype."""

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Memory on the host; the same for the same slot every time."""


@dataclass(frozen=True)
class DerivedTensor(ABC):
    """A tensor made of `parts`. `said` is the dtype that it stands for, if that is another one."""

    kind: ClassVar[str]
    """Name of the class in plan keys, which never changes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    inputs: tuple[TensorSource, ...]
    declared_dtype: DType | None = None

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.count * self.dtype.bytes

    @abstractmethod
    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        """Write elements [start, stop) to `out` (1-D, host); parts go to slots that begin so.

        The bits must not depend on where a run begins and ends.
        """

    @abstractmethod
    def fingerprint(self) -> object:
        """What the values depend on beside the parts, for the key of a merge: JSON."""

    def buffer_size(self) -> BufferSize:
        """What `fill` takes beside `out`."""
        return add_sizes(buffer_size(source) for source in self.inputs)


TensorSource = StoredTensor | DerivedTensor


def buffer_size(source: TensorSource) -> BufferSize:
    """What reading a source takes, its values included."""
    values = BufferSize(source.dtype.bytes)
    return values if isinstance(source, StoredTensor) else add_sizes([values, source.buffer_size()])


def bytes_read(source: TensorSource) -> int:
    """Bytes that are read from disk for one pass over a source."""
    return sum(info.nbytes for info in stored_inputs(source))


def add_sizes(sizes: Iterable[BufferSize]) -> BufferSize:
    sizes = list(sizes)
    return BufferSize(sum(s.per_element for s in sizes), sum(s.fixed for s in sizes))


def stored_inputs(source: TensorSource) -> Iterator[StoredTensor]:
    """What is on disk of a source."""
    if isinstance(source, StoredTensor):
        yield source
    else:
        for part in source.inputs:
            yield from stored_inputs(part)
