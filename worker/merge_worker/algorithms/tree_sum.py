"""Sums over all blocks of a tensor, in an order that threads and memory cannot change."""

from __future__ import annotations

import threading

from ..method import Block, Tensor

MOST_HEIGHTS = 16
"""Parts that wait for each lane: it adds a run of blocks, and a tensor has at most 2^16."""


class TreeSum:
    """The sum of one tensor for each block of a tensor of `count` elements.

    Blocks are the leaves of a binary tree, and halves are added as soon as both are there: few
    numbers wait, and every sum has the same two terms whichever comes first. A block that is added
    twice counts once.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: dict[tuple[int, int], Tensor] = {}  # by height and number
        self._last: Tensor | None = None  # of the last block, which may be short
        self._added: set[int] = set()
        self._lock = threading.Lock()

    def add(self, block: Block, part: Tensor) -> None:
        """Add the part of a block, from any thread."""
        size = block.tensors[0].numel()
        with self._lock:
            if block.start + size == self._count:
                self._last = part
                return
            height, number = 0, block.start // size
            if number in self._added:
                return
            self._added.add(number)
            while (other := self._waiting.pop((height, number ^ 1), None)) is not None:
                part = other.add_(part)
                height, number = height + 1, number // 2
            self._waiting[height, number] = part

    def total(self) -> Tensor | None:
        """Return the sum of all blocks; None if there are none."""
        parts = [self._waiting[place] for place in sorted(self._waiting, reverse=True)]
        parts += [] if self._last is None else [self._last]
        if not parts:
            return None
        total = parts[0].clone()
        for part in parts[1:]:
            total.add_(part)
        return total
