"""Limits how many lanes compute at a time; any number may wait for storage.

Two lanes computing on one CPU evict each other's blocks from its cache and pass the interpreter's
lock back and forth at every operation, which costs a tenth of the time.
"""

from __future__ import annotations

import threading


class ComputeSlots:
    """A context that at most `count` lanes enter at a time; any number if it is 0."""

    def __init__(self, count: int = 0) -> None:
        self.limited = count > 0
        self._free = threading.Semaphore(count)

    def __enter__(self) -> None:
        if self.limited:
            self._free.acquire()

    def __exit__(self, *error: object) -> None:
        if self.limited:
            self._free.release()

    @property
    def released(self) -> ReleasedSlot:
        """`with turns.released:` lets another one in meanwhile; only for who is inside."""
        return ReleasedSlot(self)


class ReleasedSlot:
    """The inverse of ComputeSlots: releases on entry, acquires on exit."""

    def __init__(self, slots: ComputeSlots) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        self._slots.__exit__()

    def __exit__(self, *error: object) -> None:
        self._slots.__enter__()


UNLIMITED = ComputeSlots()
"""Slots without a limit, which take no lock."""
