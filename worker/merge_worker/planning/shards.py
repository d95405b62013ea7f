"""Output tensors → shards with their headers and exact offsets, before any byte is merged."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoint.header import WEIGHTS
from ..dtypes import DType

PAGE = 4096
"""Bytes of a page of a file. Whole pages are written without the page cache; other writes take a
lock of the file, for which all its writers wait."""

LENGTH = 8
"""Bytes of the length in front of the header."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the result."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.bytes


@dataclass(frozen=True)
class OutputShard:
    """One file of the result: its final name, its header, its size in bytes."""

    name: str
    header: bytes
    size: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class ShardLayout:
    """All shards, and the shard and the offset in it of each output, in the order given."""

    shards: tuple[OutputShard, ...]
    places: tuple[tuple[int, int], ...]


def assign_shards(outputs: Sequence[Output], shard_bytes: int) -> ShardLayout:
    """Fill shards in the given order up to `shard_bytes`; a larger tensor gets its own.

    Inside a shard tensors of whole pages come first, then wider dtypes before narrower ones: so
    every tensor starts aligned to its dtype, and the large ones at a page.
    """
    groups: list[list[int]] = [[]]
    filled = 0
    for number, output in enumerate(outputs):
        if groups[-1] and filled + output.nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += output.nbytes
    places: dict[int, tuple[int, int]] = {}
    shards: list[OutputShard] = []
    for shard, group in enumerate(groups):
        order = sorted(group, key=lambda n: _rank(outputs[n]))
        header, offsets = safetensors_header([outputs[n] for n in order])
        position = len(header)
        for number, offset in zip(order, offsets, strict=True):
            places[number] = (shard, position + offset)
        size = position + sum(outputs[n].nbytes for n in group)
        names = tuple(outputs[n].name for n in order)
        file = f"model-{shard + 1:05d}-of-{len(groups):05d}.safetensors"
        shards.append(OutputShard(file if len(groups) > 1 else WEIGHTS, header, size, names))
    return ShardLayout(tuple(shards), tuple(places[n] for n in range(len(outputs))))


def _rank(output: Output) -> int:
    """Return the sort key of an output in its shard."""
    return -output.dtype.bytes if output.nbytes % PAGE else -PAGE


def index_json(shards: Sequence[OutputShard]) -> str:
    """Return the text of `model.safetensors.index.json` for a sharded result."""
    total = sum(shard.size - len(shard.header) for shard in shards)
    weight_map = {name: shard.name for shard in shards for name in shard.tensors}
    value = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def safetensors_header(outputs: Sequence[Output], align: int = PAGE) -> tuple[bytes, list[int]]:
    """Return length prefix and JSON header of a safetensors file, and offsets behind its end.

    Blanks fill the header up to a multiple of `align` bytes. Offsets follow the order given.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: list[int] = []
    position = 0
    for output in outputs:
        end = position + output.nbytes
        entries[output.name] = {
            "dtype": output.dtype.name,
            "shape": list(output.shape),
            "data_offsets": [position, end],
        }
        offsets.append(position)
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH + len(text)) % align)
    return len(text).to_bytes(LENGTH, "little") + text, offsets
