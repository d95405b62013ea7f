"""Positioned reads of input files: open once, never mmap, short reads continued, ends told."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading

from ..errors import InputError
from ..system.machine import UNLIMITED, ComputeSlots
from .hub import Hub

LARGEST_READ = 1 << 30
"""Linux moves at most 2 GiB - 4 KiB in one call."""

MANY_FILES = 1 << 16

UNTOLD = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""A read would wait, or the file system does not know whether it would."""


class Files:
    """Open descriptors by path, shared by all threads (positioned reads have no state)."""

    def __init__(self, hub: Hub | None = None) -> None:
        _allow_many()
        self.hub = hub or Hub()
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: str) -> int:
        """The open descriptor of `path`. InputError if it cannot be opened any more."""
        fd = self._open.get(path)
        if fd is not None:
            return fd
        self.hub.download(path)
        with self._lock:
            fd = self._open.get(path)
            if fd is None:
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise InputError(f"{path}: {error.strerror}") from None
                self._open[path] = fd
            return fd

    def read(
        self, path: str, offset: int, buffer: memoryview, turns: ComputeSlots = UNLIMITED
    ) -> None:
        """Fill `buffer` from `offset`. InputError if the file ends early or cannot be read.

        While the storage is waited for, whoever is next of `turns` computes.
        """
        fd = self.descriptor(path)
        done, total = 0, len(buffer)
        while done < total:
            part = buffer[done : done + LARGEST_READ]
            try:
                got = _cached(fd, part, offset + done) if turns.limited else 0
                if not got:
                    with turns.released():
                        got = os.preadv(fd, [part], offset + done)
            except OSError as error:
                raise InputError(f"{path}: {error.strerror} at byte {offset + done}") from None
            if got == 0:
                raise InputError(
                    f"{path}: ends at byte {offset + done}, shorter than when the merge began; "
                    f"was it replaced?"
                )
            done += got

    def will_need(self, path: str, offset: int, count: int) -> None:
        """Tell the kernel to read ahead; only a hint."""
        if hasattr(os, "posix_fadvise") and not self.hub.is_not_downloaded(path):
            os.posix_fadvise(self.descriptor(path), offset, count, os.POSIX_FADV_WILLNEED)

    def discard(self, path: str) -> None:
        """Close a file that is not read any more."""
        with self._lock:
            fd = self._open.pop(path, None)
        if fd is not None:
            _close(fd)

    def done_with(self, path: str, offset: int, count: int) -> None:
        """Leave the page cache to others; only a hint."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor(path), offset, count, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        with self._lock:
            for fd in self._open.values():
                _close(fd)
            self._open.clear()


def _cached(fd: int, part: memoryview, offset: int) -> int:
    """Read without waiting where the system has RWF_NOWAIT; return the number of bytes read."""
    try:
        return os.preadv(fd, [part], offset, getattr(os, "RWF_NOWAIT", 0))
    except OSError as error:
        if error.errno in UNTOLD:
            return 0
        raise


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # all that was wanted of it has been read
        os.close(fd)


def _allow_many() -> None:
    """Shards of many large models are more files than the usual soft limit of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
