"""The result of a merge as a model, before it is there: a plan knows its every header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .dtypes import DType
from .header import Shard, TensorInfo
from .layout import Layout
from .step import Step
from .token_files import Beside


@dataclass(frozen=True)
class Planned(Checkpoint):
    """A checkpoint that an earlier stage will have written; `key` tells its content.

    Or that is made on the way and never is a folder: then its files are those of `like`.
    """

    key: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    beside: Beside = field(default_factory=lambda: Beside(None), repr=False)

    like: Checkpoint | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path | None:
        """Where the files beside its weights are."""
        return self.like.folder if self.like else super().folder

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self.settings)


def beside_of(model: Checkpoint) -> Beside:
    """The files beside a model's weights."""
    return model.beside if isinstance(model, Planned) else Beside(model.folder)


def planned(
    folder: Path, layout: Layout, steps: Sequence[Step], said: Mapping[str, DType]
) -> Planned:
    """The model that `steps` write below `folder`; `said` are the dtypes that it stands for."""
    infos: dict[str, TensorInfo] = {}
    for step in steps:
        file = str(folder / layout.shards[step.shard].name)
        count = step.grid.count * step.dtype.bytes
        info = TensorInfo(step.name, step.dtype, step.shape, file, step.offset, count)
        infos[step.name] = replace(info, said=said[step.name])
    shards = tuple(
        Shard(
            str(folder / shard.name),
            shard.size,
            hashlib.sha256(shard.header[8:]).hexdigest(),
            tuple(infos[name] for name in shard.tensors),
        )
        for shard in layout.shards
    )
    return Planned(folder, shards, dict(infos))
