"""Turns at the processors: lanes compute in turn, and wait for the storage all at once.

Two that compute on one processor throw each other's blocks out of its cache, and hand the
interpreter's lock to and fro at every operation: a tenth of the time.
"""

from __future__ import annotations

import threading


class ComputeSlots:
    """At most `count` lanes are inside at a time; any number if it is 0."""

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
    def released(self) -> Away:
        """`with turns.released:` lets another one in meanwhile; only for who is inside."""
        return Away(self)


class Away:
    """The reverse of a turn."""

    def __init__(self, turns: ComputeSlots) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._turns.__exit__()

    def __exit__(self, *error: object) -> None:
        self._turns.__enter__()


UNLIMITED = ComputeSlots()
"""No limit, and no lock."""
