"""Reused memory of one lane, by slot, grown to the largest request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..method import T
from ..planning.step import Grid
from ..tensors.host import host_view

MANY_VIEWS = 1000


class Pool:
    """Buffers by slot, on one device, at addresses that are multiples of `aligned`.

    Each grows to the largest request and is then reused. Pools of one lane share `cache`, so that
    views which methods cached never keep memory alive that one of them frees.
    """

    def __init__(
        self,
        device: torch.device,
        pinned: bool = False,
        aligned: int = 1,
        cache: dict[tuple[object, ...], Any] | None = None,
    ) -> None:
        self.device = device
        self._cache = {} if cache is None else cache
        self.pinned = pinned
        self.aligned = aligned
        self._slots: dict[str, Tensor] = {}
        # Views are cached, since creating them for every piece costs as much as its arithmetic.
        self._views: dict[tuple[str, int, str, int], Tensor] = {}
        self._blocks: dict[tuple[object, ...], tuple[Tensor, ...]] = {}
        self._memory: dict[tuple[str, int, int], memoryview] = {}

    def bytes(self, slot: str, count: int) -> Tensor:
        """Return `count` bytes of the slot's memory."""
        buffer = self._slots.get(slot)
        if buffer is None or buffer.numel() < count:
            # The old buffer is freed first, or the peak would be both together.
            self._slots.pop(slot, None)
            self._clear_views()
            buffer = None
            options = {"pin_memory": True} if self.pinned else {"device": self.device}
            raw = torch.empty(count + self.aligned - 1, dtype=torch.uint8, **options)
            buffer = self._slots[slot] = raw[-raw.data_ptr() % self.aligned :][:count]
        return buffer[:count]

    def size_with(self, needs: Mapping[str, int]) -> int:
        """Return the bytes of all slots once they have grown to `needs`."""
        grown = {slot: buffer.numel() for slot, buffer in self._slots.items()}
        for slot, count in needs.items():
            grown[slot] = max(count, grown.get(slot, 0))
        return sum(grown.values()) + (self.aligned - 1) * len(grown)

    def clear(self) -> None:
        self._slots.clear()
        self._clear_views()

    def _clear_views(self) -> None:
        self._views.clear()
        self._blocks.clear()
        self._memory.clear()
        self._cache.clear()

    def cached(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what `make` returned for this key before, until memory of the lane moves."""
        value: T | None = self._cache.get(key)
        if value is None:
            if len(self._cache) >= MANY_VIEWS:
                self._cache.clear()
            value = self._cache[key] = make()
        return value

    def memory(self, slot: str, count: int, shift: int = 0) -> memoryview:
        """Return `count` bytes of a slot on the host from byte `shift` on, for reads and writes."""
        view = self._memory.get((slot, count, shift))
        if view is None:
            view = host_view(self.bytes(slot, shift + count)[shift:])
            self._memory[slot, count, shift] = view
        return view

    def as_blocks(self, values: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """Return the elements of a slot as the blocks of a grid."""
        key = (values.data_ptr(), values.numel(), values.dtype, grid.block, grid.row)
        blocks = self._blocks.get(key)
        if blocks is None:
            if len(self._blocks) >= MANY_VIEWS:
                self._clear_views()
            blocks = self._blocks[key] = split(values, grid)
        return blocks

    def take(self, slot: str, count: int, dtype: str, shift: int = 0) -> Tensor:
        """Return `count` elements of the slot's memory, from byte `shift` on, for methods."""
        view = self._views.get((slot, count, dtype, shift))
        if view is None:
            kind: torch.dtype = getattr(torch, dtype)
            view = self.bytes(slot, shift + count * kind.itemsize)[shift:].view(kind)
            self._views[slot, count, dtype, shift] = view
        return view


def split(values: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    """Return views of the blocks of a run, 1-D or as whole rows."""
    size = grid.block
    if grid.row is not None:
        values, size = values.view(-1, grid.row), grid.block // grid.row
    return tuple(values.split(size))  # type: ignore[no-untyped-call,unused-ignore]
