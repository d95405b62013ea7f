"""Output tensors → shards with their headers and exact offsets, before any byte is merged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..checkpoint.weight_sets import MAIN, WeightSet, owner
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
    """One file of the result: its final name, its header, its size in bytes.

    `tensors` are named as in the plan: with the prefix of the set of weights.
    """

    name: str
    header: bytes
    size: int
    tensors: tuple[str, ...]
    weights: WeightSet = MAIN


@dataclass(frozen=True)
class ShardLayout:
    """All shards, and the shard and the offset in it of each output, in the order given."""

    shards: tuple[OutputShard, ...]
    places: tuple[tuple[int, int], ...]

    def by_weights(self) -> dict[WeightSet, list[OutputShard]]:
        """Return the shards of each set of weights."""
        shards: dict[WeightSet, list[OutputShard]] = {}
        for shard in self.shards:
            shards.setdefault(shard.weights, []).append(shard)
        return shards

    def indexes(self) -> Iterator[tuple[str, str]]:
        """Yield name and text of the index of every set of several shards."""
        for weights, shards in self.by_weights().items():
            if len(shards) > 1:
                yield weights.index_name, index_json(shards)

    def sets(self) -> tuple[WeightSet, ...]:
        """Return the sets of weights with the files of the result."""
        return tuple(
            replace(
                weights,
                files=tuple(shard.name for shard in shards),
                index=weights.index_name if len(shards) > 1 else "",
            )
            for weights, shards in self.by_weights().items()
        )


def assign_shards(
    outputs: Sequence[Output], shard_bytes: int, sets: Sequence[WeightSet] = (MAIN,)
) -> ShardLayout:
    """Fill the shards of each set in the given order up to `shard_bytes`.

    A larger tensor gets its own. Inside a shard tensors of whole pages come first, then wider
    dtypes before narrower ones: so every tensor starts aligned to its dtype, and the large ones at
    a page.
    """
    numbers: dict[WeightSet, list[int]] = {weights: [] for weights in sets}
    for number, output in enumerate(outputs):
        numbers[owner(output.name, sets)].append(number)
    places: dict[int, tuple[int, int]] = {}
    shards: list[OutputShard] = []
    for weights, own in numbers.items():
        if not own and (outputs or weights != sets[0]):
            continue
        groups = _filled(own, outputs, shard_bytes) if weights.is_split else [own]
        for place, group in enumerate(groups):
            order = sorted(group, key=lambda n: _rank(outputs[n]))
            names = tuple(outputs[n].name for n in order)
            plain = [name.removeprefix(weights.prefix) for name in names]
            header, offsets = safetensors_header(
                [replace(outputs[n], name=name) for n, name in zip(order, plain, strict=True)]
            )
            for number, offset in zip(order, offsets, strict=True):
                places[number] = (len(shards), len(header) + offset)
            size = len(header) + sum(outputs[n].nbytes for n in group)
            file = weights.file_name(place, len(groups))
            shards.append(OutputShard(file, header, size, names, weights))
    return ShardLayout(tuple(shards), tuple(places[n] for n in range(len(outputs))))


def _filled(numbers: Sequence[int], outputs: Sequence[Output], shard_bytes: int) -> list[list[int]]:
    """Return the numbers of outputs in groups of up to `shard_bytes`."""
    groups: list[list[int]] = [[]]
    filled = 0
    for number in numbers:
        nbytes = outputs[number].nbytes
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += nbytes
    return groups


def _rank(output: Output) -> int:
    """Return the sort key of an output in its shard."""
    return -output.dtype.bytes if output.nbytes % PAGE else -PAGE


def index_json(shards: Sequence[OutputShard]) -> str:
    """Return the text of the index, `model.safetensors.index.json` or alike, of a set of shards."""
    total = sum(shard.size - len(shard.header) for shard in shards)
    weight_map = {
        name.removeprefix(shard.weights.prefix): shard.name.rpartition("/")[2]
        for shard in shards
        for name in shard.tensors
    }
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
