"""One lane: a thread's own buffers on host and device, and what it does with one piece."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from .cut import Grid, Piece
from .files import Files
from .methods._define import Block, Final, Reduce
from .origin import Derived, Origin

if TYPE_CHECKING:
    from torch import Tensor

    from .step import Step


MANY_VIEWS = 1000


class Pool:
    """Buffers by slot, on one device; each grows to the largest request and is then reused."""

    def __init__(self, device: torch.device, pinned: bool = False) -> None:
        self.device = device
        self.pinned = pinned
        self._slots: dict[str, Tensor] = {}
        # Views are kept, since making them anew for every piece costs as much as its maths.
        self._views: dict[tuple[str, int, str], Tensor] = {}
        self._runs: dict[tuple[str, int, str, int, int | None], tuple[Tensor, ...]] = {}
        self._memory: dict[tuple[str, int], memoryview] = {}

    def bytes(self, slot: str, count: int) -> Tensor:
        """`count` bytes of the slot's memory."""
        held = self._slots.get(slot)
        if held is None or held.numel() < count:
            # Let go first, or the peak would be old and new together.
            self._slots.pop(slot, None)
            self._forget_views()
            held = None
            options = {"pin_memory": True} if self.pinned else {"device": self.device}
            held = torch.empty(count, dtype=torch.uint8, **options)
            self._slots[slot] = held
        return held[:count]

    def held_with(self, needs: Mapping[str, int]) -> int:
        """Bytes held once the slots have grown to `needs`."""
        grown = {slot: held.numel() for slot, held in self._slots.items()}
        for slot, count in needs.items():
            grown[slot] = max(count, grown.get(slot, 0))
        return sum(grown.values())

    def clear(self) -> None:
        self._slots.clear()
        self._forget_views()

    def _forget_views(self) -> None:
        self._views.clear()
        self._runs.clear()
        self._memory.clear()

    def memory(self, slot: str, count: int) -> memoryview:
        """The first `count` bytes of a slot on the host, for reads and writes."""
        view = self._memory.get((slot, count))
        if view is None:
            view = self._memory[slot, count] = host_view(self.bytes(slot, count))
        return view

    def runs(self, slot: str, count: int, dtype: str, grid: Grid) -> tuple[Tensor, ...]:
        """`count` elements of a slot as the blocks of a grid."""
        key = (slot, count, dtype, grid.block, grid.row)
        found = self._runs.get(key)
        if found is None:
            if len(self._runs) >= MANY_VIEWS:
                self._forget_views()
            found = self._runs[key] = _split(self.take(slot, count, dtype), grid)
        return found

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """`count` elements of the slot's memory (the Scratch of methods)."""
        view = self._views.get((slot, count, dtype))
        if view is None:
            kind: torch.dtype = getattr(torch, dtype)
            view = self.bytes(slot, count * kind.itemsize).view(kind)
            self._views[slot, count, dtype] = view
        return view


def host_view(buffer: Tensor) -> memoryview:
    """The memory of a host tensor for reads and writes; numpy may be absent on the node."""
    count = buffer.numel()
    if count == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * count).from_address(buffer.data_ptr())).cast("B")


class Lane:
    """Buffers and streams of one worker thread. Not shared between threads."""

    def __init__(self, device: torch.device, files: Files, staged: bool | None = None) -> None:
        self.device = device
        self.files = files
        # With an accelerator, values pass through pinned host memory; tests stage on CPU too.
        self.staged = device.type != "cpu" if staged is None else staged
        self.host = Pool(torch.device("cpu"), pinned=device.type in ("cuda", "xpu"))
        self.on_device = Pool(device) if self.staged else self.host
        self.scratch = Pool(device)
        self._room_for: tuple[Step, int, int] | None = None

    def stream(self) -> AbstractContextManager[Any]:
        """The device's own queue of this lane, so that copies and kernels of lanes overlap."""
        if self.device.type == "cuda":
            return torch.cuda.stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        if self.device.type == "xpu":
            return torch.xpu.stream(torch.xpu.Stream(self.device))  # type: ignore[no-untyped-call]
        return nullcontext()

    def make_room(self, step: Step, piece: Piece, limit: int) -> None:
        """Let buffers go if those of other tensors and of this piece together exceed `limit`."""
        asked = (step, piece.blocks, limit)
        if self._room_for is not None and self._room_for[0] is step and self._room_for == asked:
            return
        self._room_for = asked
        start, stop = step.grid.span(piece.first, piece.blocks)
        needs = {"out": (stop - start) * step.dtype.bytes}
        for number, source in enumerate(step.sources):
            needs[f"in{number}"] = (stop - start) * source.dtype.bytes
            if isinstance(source, Derived):
                extra = source.room()
                needs[f"in{number}."] = (stop - start) * extra.per_element + extra.fixed
        scratch = min(step.grid.block, step.grid.count) * step.scratch
        if self.host.held_with(needs) + max(scratch, self.scratch.held_with({})) > limit:
            for pool in (self.host, self.on_device, self.scratch):
                pool.clear()

    def read(self, source: Origin, start: int, stop: int, slot: str) -> Tensor:
        """Elements [start, stop) of a source in its dtype, 1-D, on the host."""
        size, out = source.dtype.bytes, self.host.take(slot, stop - start, source.dtype.torch_name)
        if isinstance(source, Derived):
            source.fill(self, start, stop, out, f"{slot}.")
        else:
            memory = self.host.memory(slot, (stop - start) * size)
            self.files.read(source.file, source.offset + start * size, memory)
        return out

    def load(self, step: Step, piece: Piece) -> list[Tensor]:
        """Every source's elements of a piece in their stored dtypes, 1-D, on the device."""
        start, stop = step.grid.span(piece.first, piece.blocks)
        loaded = []
        for number, source in enumerate(step.sources):
            # Host and device have the same slots, so that one account of them fits both.
            slot = f"in{number}"
            values = self.read(source, start, stop, slot)
            if self.staged:
                there = self.on_device.take(slot, stop - start, source.dtype.torch_name)
                values = there.copy_(values, non_blocking=True)
            loaded.append(values)
        return loaded

    def blocks(
        self, step: Step, piece: Piece, loaded: list[Tensor], first: int, blocks: int
    ) -> Iterator[Block]:
        """Blocks [first, first + blocks) of the loaded piece, with rows where rows count."""
        grid = step.grid
        begin, (start, stop) = piece.first * grid.block, grid.span(first, blocks)
        parts = []
        for source, values in enumerate(loaded):
            slot, count, dtype = f"in{source}", values.numel(), step.sources[source].dtype
            if stop - start == count and values is self.on_device.take(
                slot, count, dtype.torch_name
            ):
                parts.append(self.on_device.runs(slot, count, dtype.torch_name, grid))
            else:
                parts.append(_split(values[start - begin : stop - begin], grid))
        for number, views in enumerate(zip(*parts, strict=True), first):
            yield Block(list(views), number * grid.block, self.scratch)

    def look(self, step: Step, piece: Piece, loaded: list[Tensor], reduce: Reduce) -> list[Any]:
        """One statistic per block of the piece."""
        blocks = self.blocks(step, piece, loaded, piece.first, piece.blocks)
        return [reduce.look(block) for block in blocks]

    def merge(
        self, step: Step, piece: Piece, loaded: list[Tensor], part: Piece, final: Final
    ) -> tuple[Tensor, int]:
        """Merged bytes of `part` (blocks of `piece`) on the host; how many are not finite."""
        start, stop = step.grid.span(part.first, part.blocks)
        pool = self.on_device
        out = pool.take("out", stop - start, step.dtype.torch_name)
        blocks = self.blocks(step, piece, loaded, part.first, part.blocks)
        parts = pool.runs("out", stop - start, step.dtype.torch_name, step.grid)
        for block, here in zip(blocks, parts, strict=True):
            final.merge(block, here)
        # A sum is finite only if all of its terms are: one cheap look at the whole piece.
        total = out.sum(dtype=torch.float32 if out.dtype == torch.float16 else None)
        bad = 0
        if not math.isfinite(total.item()):
            bad = int(out.numel() - torch.isfinite(out).sum())
        raw = pool.bytes("out", out.nbytes)
        if self.staged:
            raw = self.host.bytes("out", out.nbytes).copy_(raw)
        return raw, bad


def _split(values: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """Views of the blocks of a run, 1-D or as whole rows."""
    size = grid.block
    if grid.row is not None:
        values, size = values.view(-1, grid.row), grid.block // grid.row
    return tuple(values.split(size))  # type: ignore[no-untyped-call,unused-ignore]
