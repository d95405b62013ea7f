"""Writes dirty pages back early, so that the final fsync has little left to wait for."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence

PERIOD_S = 0.25
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE: begin, do not wait


class Flusher:
    """A thread that starts writeback of open files periodically while the run lasts."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = descriptors
        self._over = threading.Event()
        self._call = _sync_file_range()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Flusher:
        if self._call is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        assert self._call is not None
        while not self._over.wait(PERIOD_S):
            for descriptor in self._descriptors:
                self._call(descriptor, 0, 0, _START_WRITING)


def _sync_file_range() -> ctypes._NamedFuncPointer | None:
    """Return the C function, a mere hint, or None on systems other than Linux."""
    if os.uname().sysname != "Linux":
        return None
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
