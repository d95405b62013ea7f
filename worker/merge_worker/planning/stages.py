"""Results of documents that others refer to: lazily merged while they stream, or kept on disk.

A result is merged lazily, and never is a folder, where every tensor of it is computed element by
element in one pass. Where a method looks at a whole tensor first, the result is written to disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import Shard
from ..checkpoint.hub import in_snapshot
from ..dtypes import DType
from ..method import Block, MergePass, T
from ..tensors.source import (
    BufferSize,
    DerivedTensor,
    Reader,
    StoredTensor,
    TensorSource,
    add_sizes,
    buffer_size,
)
from ..tokenizer.files import SideFiles
from .shards import ShardLayout
from .step import Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PlannedCheckpoint(Checkpoint):
    """The checkpoint an earlier stage will write, or `like` with tensors merged while they stream.

    `key` identifies its contents.
    """

    key: str = ""
    planned_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    side_files: SideFiles = field(default_factory=lambda: SideFiles(None), repr=False)
    like: Checkpoint | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        """Folder of the side files."""
        return self.like.folder if self.like else super().folder

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self.planned_config)


def input_keys(model: Checkpoint) -> Iterator[list[object]]:
    """Yield what identifies the weights of a model, in the order of its shards."""
    if isinstance(model, PlannedCheckpoint):
        yield [model.key, *(shard.header_sha256 for shard in model.shards)]
        return
    for shard in model.shards:
        path = Path(shard.path)
        if place := in_snapshot(path):  # which may not be downloaded
            yield [*place, shard.header_sha256]
            continue
        real = path.resolve()
        yield [real, shard.size, real.stat().st_mtime_ns, shard.header_sha256]


StageResults = Mapping[str, PlannedCheckpoint]
"""Results of documents by their name in the recipe."""


def planned_checkpoint(
    folder: Path, layout: ShardLayout, steps: Sequence[Step], dtypes: Mapping[str, DType]
) -> PlannedCheckpoint:
    """Return the checkpoint that `steps` write to `folder`; `dtypes` are the declared ones."""
    tensors: dict[str, StoredTensor] = {}
    for step in steps:
        file = str(folder / layout.shards[step.shard].name)
        nbytes = step.grid.count * step.dtype.bytes
        tensors[step.name] = StoredTensor(
            step.name, step.dtype, step.shape, file, step.offset, nbytes, dtypes[step.name]
        )
    shards = tuple(
        Shard(
            str(folder / shard.name),
            shard.size,
            hashlib.sha256(shard.header[8:]).hexdigest(),
            tuple(tensors[name] for name in shard.tensors),
        )
        for shard in layout.shards
    )
    return PlannedCheckpoint(folder, shards, dict(tensors))


def merge_lazily(
    steps: Sequence[Step], dtypes: Mapping[str, DType], key: str
) -> dict[str, TensorSource] | None:
    """Return every result by name, merged when it is read; None where one of them cannot be."""
    tensors: dict[str, TensorSource] = {}
    for step in steps:
        dtype = dtypes[step.name]
        if step.task is None:
            tensors[step.name] = replace(step.sources[0], name=step.name, declared_dtype=dtype)
            continue
        if step.grid.row is not None or not isinstance(step.first_pass(), MergePass):
            return None
        tensors[step.name] = LazilyMerged(
            step.name, step.dtype, step.shape, step.sources, dtype, step=step, key=key
        )
    return tensors


@dataclass(frozen=True)
class LazilyMerged(DerivedTensor):
    """The result of a step, merged when it is read. `key` is that of the document's plan."""

    kind = "Merged"

    step: Step = field(kw_only=True)
    key: str = field(kw_only=True)

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        final, grid = self.step.first_pass(), self.step.grid
        assert isinstance(final, MergePass)
        for number in range(start // grid.block, -(-stop // grid.block)):
            first, last = grid.span(number, 1)
            read = [reader.read(p, first, last, f"{slot}{n}") for n, p in enumerate(self.inputs)]
            block = reader.take(f"{slot}out", last - first, self.dtype.torch_name)
            final.merge(Block(read, first, ReaderScratch(reader, slot)), block)
            low, high = max(start, first), min(stop, last)
            out[low - start : high - start].copy_(block[low - first : high - first])

    def fingerprint(self) -> object:
        return [self.key, self.name]

    def buffer_size(self) -> BufferSize:
        """Return the buffers of one block, which is merged whole for any part of it."""
        sources = add_sizes(buffer_size(source) for source in self.inputs)
        block = min(self.step.grid.block, max(1, self.count))
        per_element = sources.per_element + self.dtype.bytes + self.step.scratch
        return BufferSize(0, block * per_element + sources.fixed)


@dataclass(frozen=True)
class ReaderScratch:
    """Scratch of one derived tensor, in the memory of its reader."""

    reader: Reader
    slot: str

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        return self.reader.take(f"{self.slot}{slot}", count, dtype)

    def cached(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        return make()
