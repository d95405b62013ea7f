"""Checkpoints of torch.distributed.checkpoint: what is around blocks in files, and `.metadata`."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.dcp_metadata import METADATA, read_metadata
from ..planning.dcp_layout import DcpLayout
from ..planning.plan import Plan
from ..tensors.chunks import ChunkedTensor
from .blocks import joined_crc, runs
from .checksums import Checksum, checksum
from .store import PartialOutput


def write_frames(store: PartialOutput, layout: DcpLayout) -> dict[int, list[Checksum]]:
    """Write what is around the elements of all blocks, with their CRCs, to the storage.

    Returns the checksums of what was written, by file.
    """
    crcs, sums = _crcs(store), dict[int, list[Checksum]]()
    numbers = {
        (output, blocks.chunk(n).file, blocks.chunk(n).offset): n
        for output, blocks in enumerate(layout.blocks)
        for n in range(len(blocks))
    }
    for item in layout.items:
        held = item.zip
        number = numbers.get((item.output, item.shard, held.begin))
        before, after = held.around(crcs.get((item.output, number), 0))
        for text, position in ((before, held.start), (after, held.begin + held.nbytes)):
            store.files[item.shard].write(memoryview(text), position)
            sums.setdefault(item.shard, []).append(checksum(memoryview(text), position))
    for file in store.files:
        os.fsync(file.fd)
    return sums


def _crcs(store: PartialOutput) -> dict[tuple[int, int | None], int]:
    """Return the CRC of each block, by the numbers of its tensor and of itself in that."""
    found: dict[tuple[int, int | None], list[tuple[int, int, int]]] = {}
    for number, entries in store.by_step().items():
        step = store.plan.steps[number]
        for entry in entries:
            for run, (_, crc) in zip(runs(step, entry.piece), entry.parts, strict=True):
                found.setdefault((number, run.block), []).append((run.position, run.nbytes, crc))
    whole = {}
    for place, pieces in found.items():
        total = 0
        for _, nbytes, crc in sorted(pieces):
            total = joined_crc(total, crc, nbytes)
        whole[place] = total
    return whole


def metadata(plan: Plan, layout: DcpLayout) -> bytes:
    """Return `.metadata`: the classes of torch, as its own writer pickles them."""
    import torch
    from torch.distributed.checkpoint import metadata as kinds
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    entries: dict[str, kinds.STORAGE_TYPES] = {}
    blocks: dict[str, list[kinds.ChunkStorageMetadata]] = {name: [] for name in layout.names}
    for name, step in zip(layout.names, plan.steps, strict=True):
        dtype = getattr(torch, step.dtype.torch_name)
        properties = kinds.TensorProperties(dtype=dtype)
        entries[name] = kinds.TensorStorageMetadata(
            properties, torch.Size(step.shape), blocks[name]
        )
    storage: dict[kinds.MetadataIndex, object] = {}
    for item in layout.items:
        name, corner = layout.names[item.output], torch.Size(item.offsets)
        index = kinds.MetadataIndex(name, corner, len(blocks[name]))
        blocks[name].append(kinds.ChunkStorageMetadata(corner, torch.Size(item.zip.shape)))
        file = layout.shards[item.shard].name
        storage[index] = _StorageInfo(file, item.zip.start, item.zip.length)
    paths = {**{name: (name,) for name in layout.names}, **_paths(plan, layout)}
    return pickle.dumps(kinds.Metadata(entries, paths, storage))


def _paths(plan: Plan, layout: DcpLayout) -> Mapping[str, tuple[object, ...]]:
    """Return the places of tensors in the dict that was saved, as the first input has them."""
    sources = plan.models[0].tensors.values()
    files = {s.chunks.files for s in sources if isinstance(s, ChunkedTensor)}
    names = set(layout.names)
    places = [s.path for s in plan.models[0].shards if s.path.endswith(METADATA)] if files else []
    found: dict[str, tuple[object, ...]] = {}
    for place in places:
        paths = read_metadata(Path(place)).paths
        found |= {name: path for name, path in paths.items() if name in names}
    return found
