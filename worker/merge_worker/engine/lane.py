"""A lane: buffers of one thread on host and device, and its reading and computing of a piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.reader import Files
from ..method import Block, MergePass, StatisticsPass
from ..planning.shards import PAGE
from ..planning.step import Piece, Step
from ..system.machine import UNLIMITED, ComputeSlots
from ..tensors.source import DerivedTensor, StoredTensor, TensorSource
from .buffers import Pool, split
from .device import free_cached, synchronize
from .work import JointStep, shared


class Lane:
    """Buffers and device stream of one worker thread, not shared between threads."""

    def __init__(
        self,
        device: torch.device,
        files: Files,
        staged: bool | None = None,
        slots: ComputeSlots = UNLIMITED,
    ) -> None:
        self.device, self.files, self.slots = device, files, slots
        # With an accelerator, values pass through pinned host memory; tests stage on CPU too.
        self.staged = device.type != "cpu" if staged is None else staged
        cache: dict[tuple[object, ...], Any] = {}
        pinned = device.type in ("cuda", "xpu")
        self.host = Pool(torch.device("cpu"), pinned, cache=cache)
        self.on_device = Pool(device, cache=cache) if self.staged else self.host
        # Results, at the same offset from a page in memory as in the file.
        self.landing = Pool(self.host.device, pinned, PAGE, cache)
        self.scratch = Pool(device, cache=cache)
        self._room_for: tuple[Step, int, int] | None = None

    def stream(self) -> AbstractContextManager[Any]:
        """Return a device queue for this lane, so that copies and kernels of lanes overlap."""
        if self.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        if self.device.type == "xpu":
            return torch.xpu.stream(torch.xpu.Stream(self.device))  # type: ignore[no-untyped-call]
        return nullcontext()

    def make_room(self, step: JointStep, piece: Piece, limit: int) -> None:
        """Free all buffers if those of earlier tensors and this piece would exceed `limit`."""
        asked = (step, piece.blocks, limit)
        if self._room_for is not None and self._room_for[0] is step and self._room_for == asked:
            return
        self._room_for = asked
        start, stop = step.grid.span(piece.first, piece.blocks)
        needs: dict[str, int] = {}
        for number, source in enumerate(step.sources):
            needs[f"in{number}"] = (stop - start) * source.dtype.bytes
            if isinstance(source, DerivedTensor):
                extra = source.buffer_size()
                needs[f"in{number}."] = (stop - start) * extra.per_element + extra.fixed
        scratch = min(step.grid.block, step.grid.count) * step.scratch
        outs = {f"out{n}": (stop - start) * m.step.dtype.bytes for n, m in enumerate(step.members)}
        landing = self.landing.size_with({slot: count + PAGE for slot, count in outs.items()})
        total = self.host.size_with(needs) + landing
        if total + max(scratch, self.scratch.size_with({})) + step.held > limit:
            self.clear()
            self._room_for = asked

    def clear(self) -> None:
        """Free all buffers, and the memory that torch caches on the device."""
        for pool in (self.host, self.on_device, self.landing, self.scratch):
            pool.clear()
        self._room_for = None
        free_cached(self.device)

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        """Read elements [start, stop) of a source: 1-D, in its dtype, on the host."""
        return self._read(self.host, source, (start, stop), slot)

    def read_to_copy(self, step: Step, part: Piece) -> tuple[Tensor, memoryview]:
        """Read a part of the first source to where it is written from; return its bytes, too."""
        source, (start, stop) = step.sources[0], step.grid.span(part.first, part.blocks)
        slot, shift = "out0", step.file_offset(part) % PAGE
        values = self._read(self.landing, source, (start, stop), slot, shift)
        return values, self.landing.memory(slot, values.nbytes, shift)

    def _read(
        self, pool: Pool, source: TensorSource, span: tuple[int, int], slot: str, shift: int = 0
    ) -> Tensor:
        (start, stop), dtype = span, source.dtype
        out = pool.take(slot, stop - start, dtype.torch_name, shift)
        if isinstance(source, StoredTensor):
            memory = pool.memory(slot, out.nbytes, shift)
            begin = self.files.begin(source) + start * dtype.bytes
            self.files.read(source.file, begin, memory, self.slots)
        else:
            source.read_into(self, start, stop, out, f"{slot}.")
        return out

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Return memory on the host, for derived sources."""
        return self.host.take(slot, count, dtype)

    def load(self, step: Step, piece: Piece) -> Loaded:
        """Load a piece of every source: 1-D, in its stored dtype, on the device."""
        start, stop = step.grid.span(piece.first, piece.blocks)
        loaded = []
        if self.staged:
            synchronize(self.device)  # or buffers would be overwritten that are still being copied
        for number, source in enumerate(step.sources):
            # Host and device have the same slots, so that one account of them fits both.
            slot = f"in{number}"
            values = self.read(source, start, stop, slot)
            if self.staged:
                copy = self.on_device.take(slot, stop - start, source.dtype.torch_name)
                values = copy.copy_(values, non_blocking=True)
            loaded.append(values)
        return Loaded(piece, loaded)

    def blocks(self, step: Step, part: Piece, loaded: Loaded | None) -> Iterator[Block]:
        """Yield the blocks of a part of a tensor, as whole rows where the grid has rows.

        Without `loaded`, each block is read just before, so that it is in the processor's cache.
        """
        grid = step.grid
        if loaded is None:
            yield from self._read_blocks(step, part)
            return
        begin, (start, stop) = loaded.piece.first * grid.block, grid.span(part.first, part.blocks)
        if part == loaded.piece:
            parts = [self.on_device.as_blocks(values, grid) for values in loaded.sources]
        else:
            parts = [split(values[start - begin : stop - begin], grid) for values in loaded.sources]
        for number, views in enumerate(zip(*parts, strict=True), part.first):
            yield Block(list(views), number * grid.block, self.scratch)

    def _read_blocks(self, step: Step, part: Piece) -> Iterator[Block]:
        """Read each block into the same buffers, with few Python steps for each."""
        grid, count = step.grid, -1
        views: list[Tensor] = []
        slots = [(source, f"in{number}") for number, source in enumerate(step.sources)]
        for number in range(part.first, part.first + part.blocks):
            start, stop = grid.span(number, 1)
            read = [self.read(source, start, stop, slot) for source, slot in slots]
            if stop - start != count:
                count = stop - start
                views = [self.host.as_blocks(values, grid)[0] for values in read]
            yield Block(views, start, self.scratch)

    def collect(
        self,
        step: JointStep,
        part: Piece,
        loaded: Loaded | None,
        passes: Sequence[StatisticsPass | None],
    ) -> list[list[Any]]:
        """Return for each member with a statistics pass its statistics of every block."""
        statistics: list[list[Any]] = [[] for _ in passes]
        for block in self.blocks(step, part, loaded):
            for member, pass_, partials in zip(step.members, passes, statistics, strict=True):
                if pass_ is not None:
                    partials.append(pass_.collect(member.of(block)))
        return statistics

    def merge(
        self, step: JointStep, part: Piece, loaded: Loaded | None, finals: Sequence[MergePass]
    ) -> list[tuple[memoryview, int]]:
        """Merge a part. Return each member's bytes on the host and count of NaN and Inf."""
        steps = [member.step for member in step.members]
        outs = [self._out(number, own, part) for number, own in enumerate(steps)]
        pool = self.on_device if self.staged else self.landing
        parts = [pool.as_blocks(out, step.grid) for out in outs]
        for number, block in enumerate(self.blocks(step, part, loaded)):
            block = shared(block, finals)
            for member, final, blocks in zip(step.members, finals, parts, strict=True):
                final.merge(member.of(block), blocks[number])
        landed = [self._landed(number, own, part, outs[number]) for number, own in enumerate(steps)]
        # Terms near the largest float32 overflow where their sum would not.
        pairs = zip(finals, landed, strict=True)
        wider = [final.in_float64() if bad else None for final, (_, bad) in pairs]
        for number, block in enumerate(self.blocks(step, part, loaded) if any(wider) else ()):
            for member, wide, blocks in zip(step.members, wider, parts, strict=True):
                if wide is not None and not blocks[number].isfinite().all():
                    wide.merge(member.of(block), blocks[number])
        for number, wide in enumerate(wider):
            if wide is not None:
                landed[number] = self._landed(number, steps[number], part, outs[number])
        return landed

    def _out(self, number: int, step: Step, part: Piece) -> Tensor:
        """Return the buffer of a result: on the CPU, the one that it is written from."""
        start, stop = step.grid.span(part.first, part.blocks)
        slot, count, dtype = f"out{number}", stop - start, step.dtype.torch_name
        if self.staged:
            return self.on_device.take(slot, count, dtype)
        return self.landing.take(slot, count, dtype, step.file_offset(part) % PAGE)

    def _landed(self, number: int, step: Step, part: Piece, out: Tensor) -> tuple[memoryview, int]:
        bad = nonfinite(out)
        slot, shift = f"out{number}", step.file_offset(part) % PAGE
        if self.staged:
            self.landing.take(slot, out.numel(), step.dtype.torch_name, shift).copy_(out)
        return self.landing.memory(slot, out.nbytes, shift), bad


def nonfinite(values: Tensor) -> int:
    """Return the number of NaN and Inf in a tensor of floating-point numbers, of any shape."""
    # A sum is finite only if all of its terms are, which is cheap to test: 0.03 s for each GB,
    # against 1.7 s of looking at every element.
    if values.element_size() > 1:
        total = values.sum(dtype=torch.float32 if values.dtype == torch.float16 else None)
        if math.isfinite(total.item()):
            return 0
    return int(values.numel() - torch.isfinite(values).sum())


class Loaded(NamedTuple):
    """A piece of every source, on the device."""

    piece: Piece
    sources: list[Tensor]
