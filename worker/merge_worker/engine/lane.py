"""One lane: a thread's own buffers on host and device, and what it does with one piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoint.reader import Files
from ..method import Block, MergePass, StatisticsPass
from ..planning.shards import PAGE
from ..planning.step import Piece
from ..system.compute_slots import UNLIMITED, ComputeSlots
from ..tensors.source import DerivedTensor, StoredTensor, TensorSource
from .buffers import Pool, split
from .device import free_cached, synchronize
from .work import shared

if TYPE_CHECKING:
    from torch import Tensor

    from ..planning.step import Step
    from .work import JointStep


class Lane:
    """Buffers and streams of one worker thread. Not shared between threads."""

    def __init__(
        self,
        device: torch.device,
        files: Files,
        staged: bool | None = None,
        turns: ComputeSlots = UNLIMITED,
    ) -> None:
        self.device, self.files, self.turns = device, files, turns
        # With an accelerator, values pass through pinned host memory; tests stage on CPU too.
        self.staged = device.type != "cpu" if staged is None else staged
        cache: dict[tuple[object, ...], Any] = {}
        pinned = device.type in ("cuda", "xpu")
        self.host = Pool(torch.device("cpu"), pinned, cache=cache)
        self.on_device = Pool(device, cache=cache) if self.staged else self.host
        # What is written, as far beyond a page in memory as in the file.
        self.landing = Pool(self.host.device, pinned, PAGE, cache)
        self.scratch = Pool(device, cache=cache)
        self._room_for: tuple[Step, int, int] | None = None

    def stream(self) -> AbstractContextManager[Any]:
        """The device's own queue of this lane, so that copies and kernels of lanes overlap."""
        if self.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        if self.device.type == "xpu":
            return torch.xpu.stream(torch.xpu.Stream(self.device))  # type: ignore[no-untyped-call]
        return nullcontext()

    def make_room(self, step: JointStep, piece: Piece, limit: int) -> None:
        """Let buffers go if those of other tensors and of this piece together exceed `limit`."""
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
        landing = self.landing.held_with({slot: count + PAGE for slot, count in outs.items()})
        held = self.host.held_with(needs) + landing
        if held + max(scratch, self.scratch.held_with({})) > limit:
            self.clear()
            self._room_for = asked

    def clear(self) -> None:
        """Let all buffers go, and give the device its memory back."""
        for pool in (self.host, self.on_device, self.landing, self.scratch):
            pool.clear()
        self._room_for = None
        free_cached(self.device)

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        """Elements [start, stop) of a source in its dtype, 1-D, on the host."""
        dtype = source.dtype
        out = self.host.take(slot, stop - start, dtype.torch_name)
        if isinstance(source, StoredTensor):
            size = dtype.bytes
            memory = self.host.memory(slot, (stop - start) * size)
            self.files.read(source.file, source.offset + start * size, memory, self.turns)
        else:
            source.read_into(self, start, stop, out, f"{slot}.")
        return out

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Memory on the host, as derived sources need it."""
        return self.host.take(slot, count, dtype)

    def load(self, step: Step, piece: Piece) -> Loaded:
        """Every source's elements of a piece in their stored dtypes, 1-D, on the device."""
        start, stop = step.grid.span(piece.first, piece.blocks)
        loaded = []
        if self.staged:
            synchronize(self.device)  # or what is still being copied to it would be overwritten
        for number, source in enumerate(step.sources):
            # Host and device have the same slots, so that one account of them fits both.
            slot = f"in{number}"
            values = self.read(source, start, stop, slot)
            if self.staged:
                there = self.on_device.take(slot, stop - start, source.dtype.torch_name)
                values = there.copy_(values, non_blocking=True)
            loaded.append(values)
        return Loaded(piece, loaded)

    def blocks(self, step: Step, part: Piece, loaded: Loaded | None) -> Iterator[Block]:
        """The blocks of a part of a tensor, as whole rows where rows count.

        What is not loaded is read block by block: it is in the processor's cache then.
        """
        grid = step.grid
        if loaded is None:
            yield from self._read_blocks(step, part)
            return
        begin, (start, stop) = loaded.piece.first * grid.block, grid.span(part.first, part.blocks)
        if part == loaded.piece:
            parts = [self.on_device.runs(values, grid) for values in loaded.sources]
        else:
            parts = [split(values[start - begin : stop - begin], grid) for values in loaded.sources]
        for number, views in enumerate(zip(*parts, strict=True), part.first):
            yield Block(list(views), number * grid.block, self.scratch)

    def _read_blocks(self, step: Step, part: Piece) -> Iterator[Block]:
        """Each block into the same buffers; few steps of the interpreter, since blocks are many."""
        grid, count = step.grid, -1
        views: list[Tensor] = []
        slots = [(source, f"in{number}") for number, source in enumerate(step.sources)]
        for number in range(part.first, part.first + part.blocks):
            start, stop = grid.span(number, 1)
            read = [self.read(source, start, stop, slot) for source, slot in slots]
            if stop - start != count:
                count, views = stop - start, [self.host.runs(values, grid)[0] for values in read]
            yield Block(views, start, self.scratch)

    def look(
        self,
        step: JointStep,
        part: Piece,
        loaded: Loaded | None,
        reduces: Sequence[StatisticsPass | None],
    ) -> list[list[Any]]:
        """One statistic per block for each member that asks for one."""
        found: list[list[Any]] = [[] for _ in reduces]
        for block in self.blocks(step, part, loaded):
            for member, reduce, partials in zip(step.members, reduces, found, strict=True):
                if reduce is not None:
                    partials.append(reduce.collect(member.of(block)))
        return found

    def merge(
        self, step: JointStep, part: Piece, loaded: Loaded | None, finals: Sequence[MergePass]
    ) -> list[tuple[memoryview, int]]:
        """Of each member the merged bytes on the host, and how many values are not finite."""
        outs = [self._out(number, member.step, part) for number, member in enumerate(step.members)]
        parts = [pool.runs(out, step.grid) for pool, out in outs]
        for number, block in enumerate(self.blocks(step, part, loaded)):
            block = shared(block, finals)
            for member, final, blocks in zip(step.members, finals, parts, strict=True):
                final.merge(member.of(block), blocks[number])
        landed = [
            self._landed(number, member.step, part, out)
            for number, (member, (_, out)) in enumerate(zip(step.members, outs, strict=True))
        ]
        # Terms near the largest float32 overflow where their sum would not.
        wider = [
            final.in_float64() if bad else None
            for final, (_, bad) in zip(finals, landed, strict=True)
        ]
        for number, block in enumerate(self.blocks(step, part, loaded) if any(wider) else ()):
            for member, wide, blocks in zip(step.members, wider, parts, strict=True):
                if wide is not None and not blocks[number].isfinite().all():
                    wide.merge(member.of(block), blocks[number])
        for number, (member, wide) in enumerate(zip(step.members, wider, strict=True)):
            if wide is not None:
                landed[number] = self._landed(number, member.step, part, outs[number][1])
        return landed

    def _out(self, number: int, step: Step, part: Piece) -> tuple[Pool, Tensor]:
        """Where a result is computed: with the CPU, in the memory that it is written from."""
        start, stop = step.grid.span(part.first, part.blocks)
        pool, shift = (
            (self.on_device, 0) if self.staged else (self.landing, step.file_offset(part) % PAGE)
        )
        return pool, pool.take(f"out{number}", stop - start, step.dtype.torch_name, shift)

    def _landed(self, number: int, step: Step, part: Piece, out: Tensor) -> tuple[memoryview, int]:
        # A sum is finite only if all of its terms are: one cheap look at the whole piece.
        total = out.sum(dtype=torch.float32 if out.dtype == torch.float16 else None)
        bad = 0
        if not math.isfinite(total.item()):
            bad = int(out.numel() - torch.isfinite(out).sum())
        slot, shift = f"out{number}", step.file_offset(part) % PAGE
        if self.staged:
            self.landing.take(slot, out.numel(), step.dtype.torch_name, shift).copy_(out)
        return self.landing.memory(slot, out.nbytes, shift), bad


@dataclass(frozen=True)
class Loaded:
    """A piece of every source, on the device."""

    piece: Piece
    sources: list[Tensor]

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.sources)
