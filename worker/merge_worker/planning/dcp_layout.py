"""Output tensors → files of torch.distributed.checkpoint, with exact offsets. No torch.

A tensor has the blocks of the first input if that is such a checkpoint, else one of up to
MOST_BYTES: what loads it may have any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

from ..tensors.chunks import Chunk, ChunkedTensor, Chunks
from ..tensors.source import TensorSource
from .shards import Output, OutputShard, ShardLayout
from .torch_file import MOST_BYTES, TorchFile, torch_file

DCP = "dcp"
SUFFIX = ".distcp"


class Item(NamedTuple):
    """A block of a tensor in a file: the number of the tensor, its corner, its zip."""

    output: int
    offsets: tuple[int, ...]
    shard: int
    zip: TorchFile


@dataclass(frozen=True)
class DcpLayout(ShardLayout):
    """The files of a checkpoint, all blocks in them, and those of each output by number.

    `names` are those of the tensors in the checkpoint.
    """

    items: tuple[Item, ...] = field(default=(), repr=False)
    blocks: tuple[Chunks, ...] = field(default=(), repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)

    def indexes(self) -> Iterator[tuple[str, str]]:
        """Yield nothing: `.metadata` is written last, with torch."""
        return iter(())


class _Box(NamedTuple):
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str


def assign_dcp(
    outputs: Sequence[Output], shard_bytes: int, like: Mapping[str, TensorSource]
) -> DcpLayout:
    """Place the blocks of all outputs; `like` are the tensors of the first input."""
    filled, number = 0, 0
    boxes: dict[str, list[tuple[int, _Box]]] = {}
    for place, output in enumerate(outputs):
        source = like.get(output.name)
        if isinstance(source, ChunkedTensor) and source.shape == output.shape:
            found = [_box(source.chunks, n) for n in range(len(source.chunks))]
        else:
            if filled and filled + output.nbytes > shard_bytes:
                filled, number = 0, number + 1
            filled += output.nbytes
            found = [_Box((0,) * len(output.shape), output.shape, f"__0_{number}{SUFFIX}")]
        for box in found:
            for part in _cut(box, output.dtype.bytes):
                boxes.setdefault(part.file, []).append((place, part))
    items: list[Item] = []
    shards: list[OutputShard] = []
    seen: set[int] = set()
    for shard, (file, own) in enumerate(sorted(boxes.items())):
        position, own_names = 0, list[str]()
        for place, box in own:
            output = outputs[place]
            nbytes = prod(box.sizes) * output.dtype.bytes
            held = torch_file(output.dtype, box.sizes, nbytes, position)
            position += held.length
            items.append(Item(place, box.offsets, shard, held))
            own_names += [output.name] if place not in seen else []
            seen.add(place)
        shards.append(OutputShard(file, b"", position, tuple(own_names)))
    chunks: list[list[Chunk]] = [[] for _ in outputs]
    for item in items:
        chunks[item.output].append(
            Chunk(item.offsets, item.zip.shape, item.shard, item.zip.begin, 0)
        )
    files = tuple(shard.name for shard in shards)
    blocks = tuple(
        Chunks.of(output.name, output.dtype, output.shape, files, own)
        for output, own in zip(outputs, chunks, strict=True)
    )
    places = tuple((own[0].file, own[0].offset) if own else (0, 0) for own in chunks)
    names = tuple(_name(output.name, like.get(output.name)) for output in outputs)
    return DcpLayout(tuple(shards), places, tuple(items), blocks, names)


def _box(chunks: Chunks, number: int) -> _Box:
    chunk = chunks.chunk(number)
    return _Box(chunk.offsets, chunk.sizes, Path(chunks.files[chunk.file]).name)


def _name(name: str, source: TensorSource | None) -> str:
    """Return the name of a tensor as the first input has it, with the keys that it is under."""
    return source.origin[1] if isinstance(source, ChunkedTensor) else name


def _cut(box: _Box, size: int) -> Iterator[_Box]:
    """Cut a block into blocks of less than MOST_BYTES; `size` are the bytes of an element."""
    if prod(box.sizes) * size < MOST_BYTES:
        yield box
        return
    axis = next(n for n, extent in enumerate(box.sizes) if extent > 1)
    half = box.sizes[axis] // 2
    for first, extent in ((0, half), (half, box.sizes[axis] - half)):
        offsets, sizes = list(box.offsets), list(box.sizes)
        offsets[axis], sizes[axis] = offsets[axis] + first, extent
        yield from _cut(_Box(tuple(offsets), tuple(sizes), box.file), size)
