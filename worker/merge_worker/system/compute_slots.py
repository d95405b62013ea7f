"""Limits how many lanes compute at a time; any number may wait for storage.

Two lanes computing on one CPU evict each other's blocks from its cache and pass the interpreter's
lock back and forth at every operation, which costs a tenth of the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


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

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let another lane in while the block runs; only for a lane that is inside."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


UNLIMITED = ComputeSlots()  # slots without a limit, which take no lock
