"""Steps of a plan, one for each output tensor, and the blocks and pieces that it is cut into.

The grid of blocks depends on the tensor, its method and the kind of device only, so results cannot
depend on memory, threads or ranks; pieces are just how many blocks one lane takes at a time.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..algorithms.modifiers import begin
from ..dtypes import DType
from ..method import Granularity, MergePass, Method, StatisticsPass, Task, matrix_shape
from ..tensors.chunks import Chunks
from ..tensors.source import StoredTensor, TensorSource, bytes_read, stored_inputs

CPU_BLOCK = 1 << 17
"""Elements that stay in a core's cache while a block is computed (measured: 2^17)."""

MULTIPASS_FACTOR = 2
"""Factor of the block where sources are read again: methods with statistics passes do more to each
element, and a call costs the interpreter as much as thousands of them (measured: sign votes took
5 % less time)."""

DEVICE_BLOCK = 1 << 21
"""Elements that outweigh the launch of a kernel on an accelerator (not measured)."""


DRIVER_FILES = ("/dev/nvidiactl", "/dev/kfd")


def has_accelerator(driver_files: Sequence[str] = DRIVER_FILES) -> bool:
    """Return whether this machine shows an accelerator, by the files of its driver: no torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    present = any(Path(file).exists() for file in driver_files) and not hidden
    return present or (sys.platform == "darwin" and platform.machine() == "arm64")


def block_for(device: str, driver_files: Sequence[str] = DRIVER_FILES) -> int:
    """Return the elements of a block for a value of `--device`.

    For `auto` the driver's files decide: a plan is made before torch is loaded.
    """
    if device == "cpu":
        return CPU_BLOCK
    present = device != "auto" or has_accelerator(driver_files)
    return DEVICE_BLOCK if present else CPU_BLOCK


@dataclass(frozen=True, slots=True)
class Grid:
    """The blocks of one tensor: `block` elements each, the last one shorter."""

    count: int
    block: int
    row: int | None  # row length if blocks are made of whole rows

    @property
    def blocks(self) -> int:
        return -(-self.count // self.block) if self.count else 0

    def span(self, first: int, blocks: int) -> tuple[int, int]:
        """Return the elements [start, stop) of a run of blocks."""
        return first * self.block, min(self.count, (first + blocks) * self.block)


def block_grid(shape: tuple[int, ...], cut: Granularity, block: int) -> Grid:
    """Return the grid of a tensor: blocks of about `block` elements, each of whole `cut` units."""
    count = math.prod(shape)
    if cut is Granularity.MATRIX and count and (matrix := matrix_shape(shape)):
        size = matrix[0] * matrix[1]
        return Grid(count, size, size)
    if cut in (Granularity.ELEMENT, Granularity.MATRIX) or count == 0:
        return Grid(count, block, None)
    # A vector is one row.
    row = count // shape[0] if len(shape) > 1 else count
    if cut is Granularity.TENSOR:
        return Grid(count, count, row)
    return Grid(count, max(1, block // row) * row, row)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of blocks of one tensor, which one lane reads, computes and writes at a time."""

    first: int
    blocks: int


def pieces(first: int, stop: int, most: int) -> Iterator[Piece]:
    """Cut blocks [first, stop) into pieces of at most `most` blocks."""
    while first < stop:
        yield Piece(first, min(most, stop - first))
        first += most


@dataclass(frozen=True, slots=True)
class Step:
    """One output tensor: its sources, its method and its position in the output.

    `task` is None where the bytes are copied from the first source. `method` is not always the
    recipe's: copies may be converted.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[TensorSource, ...]
    task: Task | None
    method: Method | None
    grid: Grid
    reads: int
    scratch: int  # bytes per element of the block that is computed
    shard: int
    offset: int
    flops: int = 0  # where computing takes longer than reading
    held: int = 0  # bytes of statistics, beside the buffers
    blocks: Chunks | None = None  # of a tensor that is written in several places

    def first_pass(self) -> StatisticsPass | MergePass | None:
        """Return the pass that computing begins with; None where bytes are copied."""
        if self.method is None or self.task is None:
            return None
        return begin(self.method, self.task)

    def stored_inputs(self) -> Iterator[StoredTensor]:
        """Yield the stored tensors that the sources are read from."""
        return (tensor for source in self.sources for tensor in stored_inputs(source))

    @property
    def weights(self) -> tuple[TensorSource, ...]:
        """The sources that are weights of models, without their importance."""
        if self.task is None:
            return self.sources
        return self.sources[: self.task.models + self.task.has_base]

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk in one pass over the sources."""
        return sum(bytes_read(source) for source in self.sources)

    @property
    def result_bytes(self) -> int:
        """Bytes written for each element."""
        return self.dtype.bytes

    @property
    def results(self) -> int:
        """Number of results that the step writes."""
        return 1

    def file_offset(self, piece: Piece) -> int:
        """Return the byte of the shard at which a piece begins."""
        return self.offset + piece.first * self.grid.block * self.dtype.bytes
