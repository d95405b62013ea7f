"""One lane: a thread's own buffers on host and device, and what it does with one piece."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .cut import Grid, Piece
from .device import empty, wait
from .files import Files
from .header import TensorInfo
from .layout import PAGE
from .methods._define import Block, Final, Reduce
from .origin import Derived, Origin
from .together import shared
from .turns import Turns

if TYPE_CHECKING:
    from torch import Tensor

    from .step import Step
    from .together import Joint

MANY_VIEWS = 1000


class Pool:
    """Buffers by slot, on one device; each grows to the largest request and is then reused.

    `aligned` is what their addresses are multiples of.
    """

    def __init__(self, device: torch.device, pinned: bool = False, aligned: int = 1) -> None:
        self.device = device
        self.pinned = pinned
        self.aligned = aligned
        self._slots: dict[str, Tensor] = {}
        # Views are kept, since making them anew for every piece costs as much as its maths.
        self._views: dict[tuple[str, int, str, int], Tensor] = {}
        self._runs: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._memory: dict[tuple[str, int, int], memoryview] = {}

    def bytes(self, slot: str, count: int) -> Tensor:
        """`count` bytes of the slot's memory."""
        held = self._slots.get(slot)
        if held is None or held.numel() < count:
            # Let go first, or the peak would be old and new together.
            self._slots.pop(slot, None)
            self._forget_views()
            held = None
            options = {"pin_memory": True} if self.pinned else {"device": self.device}
            raw = torch.empty(count + self.aligned - 1, dtype=torch.uint8, **options)
            held = self._slots[slot] = raw[-raw.data_ptr() % self.aligned :][:count]
        return held[:count]

    def held_with(self, needs: Mapping[str, int]) -> int:
        """Bytes held once the slots have grown to `needs`."""
        grown = {slot: held.numel() for slot, held in self._slots.items()}
        for slot, count in needs.items():
            grown[slot] = max(count, grown.get(slot, 0))
        return sum(grown.values()) + (self.aligned - 1) * len(grown)

    def clear(self) -> None:
        self._slots.clear()
        self._forget_views()

    def _forget_views(self) -> None:
        self._views.clear()
        self._runs.clear()
        self._memory.clear()

    def memory(self, slot: str, count: int, shift: int = 0) -> memoryview:
        """`count` bytes of a slot on the host from byte `shift` on, for reads and writes."""
        view = self._memory.get((slot, count, shift))
        if view is None:
            view = host_view(self.bytes(slot, shift + count)[shift:])
            self._memory[slot, count, shift] = view
        return view

    def runs(self, values: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Elements of a slot as the blocks of a grid."""
        key = (values.data_ptr(), values.numel(), values.dtype, grid.block, grid.row)
        found = self._runs.get(key)
        if found is None:
            if len(self._runs) >= MANY_VIEWS:
                self._forget_views()
            found = self._runs[key] = split(values, grid)
        return found

    def take(self, slot: str, count: int, dtype: str, shift: int = 0) -> Tensor:
        """`count` elements of the slot's memory (the Scratch of methods) from byte `shift` on."""
        view = self._views.get((slot, count, dtype, shift))
        if view is None:
            kind: torch.dtype = getattr(torch, dtype)
            view = self.bytes(slot, shift + count * kind.itemsize)[shift:].view(kind)
            self._views[slot, count, dtype, shift] = view
        return view


def host_view(buffer: Tensor) -> memoryview:
    """The memory of a host tensor for reads and writes; numpy may be absent on the node."""
    count = buffer.numel()
    if count == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * count).from_address(buffer.data_ptr())).cast("B")


class Lane:
    """Buffers and streams of one worker thread. Not shared between threads."""

    def __init__(
        self,
        device: torch.device,
        files: Files,
        staged: bool | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.device, self.files, self.turns = device, files, turns
        # With an accelerator, values pass through pinned host memory; tests stage on CPU too.
        self.staged = device.type != "cpu" if staged is None else staged
        self.host = Pool(torch.device("cpu"), pinned=device.type in ("cuda", "xpu"))
        self.on_device = Pool(device) if self.staged else self.host
        # What is written, as far beyond a page in memory as in the file.
        self.landing = Pool(self.host.device, self.host.pinned, PAGE)
        self.scratch = Pool(device)
        self._room_for: tuple[Step, int, int] | None = None

    def stream(self) -> AbstractContextManager[Any]:
        """The device's own queue of this lane, so that copies and kernels of lanes overlap."""
        if self.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        if self.device.type == "xpu":
            return torch.xpu.stream(torch.xpu.Stream(self.device))  # type: ignore[no-untyped-call]
        return nullcontext()

    def make_room(self, step: Joint, piece: Piece, limit: int) -> None:
        """Let buffers go if those of other tensors and of this piece together exceed `limit`."""
        asked = (step, piece.blocks, limit)
        if self._room_for is not None and self._room_for[0] is step and self._room_for == asked:
            return
        self._room_for = asked
        start, stop = step.grid.span(piece.first, piece.blocks)
        needs: dict[str, int] = {}
        for number, source in enumerate(step.sources):
            needs[f"in{number}"] = (stop - start) * source.dtype.bytes
            if isinstance(source, Derived):
                extra = source.room()
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
        empty(self.device)

    def read(self, source: Origin, start: int, stop: int, slot: str) -> Tensor:
        """Elements [start, stop) of a source in its dtype, 1-D, on the host."""
        dtype = source.dtype
        out = self.host.take(slot, stop - start, dtype.torch_name)
        if isinstance(source, TensorInfo):
            size = dtype.bytes
            memory = self.host.memory(slot, (stop - start) * size)
            self.files.read(source.file, source.offset + start * size, memory, self.turns)
        else:
            source.fill(self, start, stop, out, f"{slot}.")
        return out

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Memory on the host, as derived sources need it."""
        return self.host.take(slot, count, dtype)

    def load(self, step: Step, piece: Piece) -> Loaded:
        """Every source's elements of a piece in their stored dtypes, 1-D, on the device."""
        start, stop = step.grid.span(piece.first, piece.blocks)
        loaded = []
        if self.staged:
            wait(self.device)  # or what is still being copied to it would be overwritten
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
        self, step: Joint, part: Piece, loaded: Loaded | None, reduces: Sequence[Reduce | None]
    ) -> list[list[Any]]:
        """One statistic per block for each member that asks for one."""
        found: list[list[Any]] = [[] for _ in reduces]
        for block in self.blocks(step, part, loaded):
            for member, reduce, partials in zip(step.members, reduces, found, strict=True):
                if reduce is not None:
                    partials.append(reduce.look(member.of(block)))
        return found

    def merge(
        self, step: Joint, part: Piece, loaded: Loaded | None, finals: Sequence[Final]
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
            final.wide() if bad else None for final, (_, bad) in zip(finals, landed, strict=True)
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
            (self.on_device, 0) if self.staged else (self.landing, step.place(part) % PAGE)
        )
        return pool, pool.take(f"out{number}", stop - start, step.dtype.torch_name, shift)

    def _landed(self, number: int, step: Step, part: Piece, out: Tensor) -> tuple[memoryview, int]:
        # A sum is finite only if all of its terms are: one cheap look at the whole piece.
        total = out.sum(dtype=torch.float32 if out.dtype == torch.float16 else None)
        bad = 0
        if not math.isfinite(total.item()):
            bad = int(out.numel() - torch.isfinite(out).sum())
        slot, shift = f"out{number}", step.place(part) % PAGE
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


def split(values: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """Views of the blocks of a run, 1-D or as whole rows."""
    size = grid.block
    if grid.row is not None:
        values, size = values.view(-1, grid.row), grid.block // grid.row
    return tuple(values.split(size))  # type: ignore[no-untyped-call,unused-ignore]
