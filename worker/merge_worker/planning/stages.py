"""The result of a document that others use, made while they stream: never a folder on disk.

That can be where every tensor of it is a sum of its sources element by element; what needs an
earlier look at a whole tensor is kept on disk instead (`planned`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..algorithms.lines import scaled
from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import Shard
from ..dtypes import DType
from ..method import Block, MergePass
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
class LazilyMerged(DerivedTensor):
    """What a step makes of its sources. `key` is that of the document's plan."""

    kind = "Merged"

    step: Step = field(kw_only=True)
    key: str = field(kw_only=True)

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        final, grid = _final(self.step), self.step.grid
        assert isinstance(final, MergePass)
        for number in range(start // grid.block, -(-stop // grid.block)):
            first, last = grid.span(number, 1)
            read = [reader.read(p, first, last, f"{slot}{n}") for n, p in enumerate(self.inputs)]
            here = reader.take(f"{slot}out", last - first, self.dtype.torch_name)
            final.merge(Block(read, first, _Scratch(reader, slot)), here)
            low, high = max(start, first), min(stop, last)
            out[low - start : high - start].copy_(here[low - first : high - first])

    def fingerprint(self) -> object:
        return [self.key, self.name]

    def buffer_size(self) -> BufferSize:
        """A block at a time, whatever the run."""
        sources = add_sizes(buffer_size(source) for source in self.inputs)
        block = min(self.step.grid.block, max(1, self.count))
        each = sources.per_element + self.dtype.bytes + self.step.scratch
        return BufferSize(0, block * each + sources.fixed)


@dataclass(frozen=True)
class _Scratch:
    """Memory of the reader that belongs to one derived tensor."""

    reader: Reader
    slot: str

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        return self.reader.take(f"{self.slot}{slot}", count, dtype)


def merge_lazily(
    steps: Sequence[Step], said: Mapping[str, DType], key: str
) -> dict[str, TensorSource] | None:
    """Every result by name, to be made on the way; None where one of them cannot be."""
    found: dict[str, TensorSource] = {}
    for step in steps:
        if step.task is None:
            found[step.name] = _as(step.sources[0], step.name, said[step.name])
            continue
        if step.grid.row is not None or not isinstance(_final(step), MergePass):
            return None
        found[step.name] = LazilyMerged(
            step.name, step.dtype, step.shape, step.sources, said[step.name], step=step, key=key
        )
    return found


def _final(step: Step) -> object:
    if step.method is None or step.task is None:
        return None
    return scaled(step.method.begin(step.task), step.task)


def _as(source: TensorSource, name: str, said: DType) -> TensorSource:
    """A copied tensor under its name in the result."""
    return replace(source, name=name, declared_dtype=said)


# MERGED The result of a merge as a model, before it is there: a plan knows its every header.


@dataclass(frozen=True)
class PlannedCheckpoint(Checkpoint):
    """A checkpoint that an earlier stage will have written; `key` tells its content.

    Or that is made on the way and never is a folder: then its files are those of `like`.
    """

    key: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    beside: SideFiles = field(default_factory=lambda: SideFiles(None), repr=False)

    like: Checkpoint | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        """Where the files beside its weights are."""
        return self.like.folder if self.like else super().folder

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self.settings)


def beside_of(model: Checkpoint) -> SideFiles:
    """The files beside a model's weights."""
    return model.beside if isinstance(model, PlannedCheckpoint) else SideFiles(model.folder)


def planned_checkpoint(
    folder: Path, layout: ShardLayout, steps: Sequence[Step], said: Mapping[str, DType]
) -> PlannedCheckpoint:
    """The model that `steps` write below `folder`; `said` are the dtypes that it stands for."""
    infos: dict[str, StoredTensor] = {}
    for step in steps:
        file = str(folder / layout.shards[step.shard].name)
        count = step.grid.count * step.dtype.bytes
        info = StoredTensor(step.name, step.dtype, step.shape, file, step.offset, count)
        infos[step.name] = replace(info, declared_dtype=said[step.name])
    shards = tuple(
        Shard(
            str(folder / shard.name),
            shard.size,
            hashlib.sha256(shard.header[8:]).hexdigest(),
            tuple(infos[name] for name in shard.tensors),
        )
        for shard in layout.shards
    )
    return PlannedCheckpoint(folder, shards, dict(infos))
