"""Positioned reads of input files: each is opened once, never mapped; short reads continue."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from pathlib import Path

from ..errors import InputError, input_errors
from ..system.machine import UNLIMITED, ComputeSlots
from ..tensors.source import StoredTensor
from .hub import Hub

LARGEST_READ = 1 << 30
"""Linux moves at most 2 GiB - 4 KiB in one call."""

MANY_FILES = 1 << 16
SAMPLES, SAMPLE_BYTES = 64, 16

NOT_CACHED = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""A read would wait, or the file system does not know whether it would."""


class Files:
    """Open descriptors by path, shared by all threads (positioned reads have no state)."""

    def __init__(self, hub: Hub | None = None) -> None:
        _allow_many()
        self.hub = hub or Hub()
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: str) -> int:
        """Return the open descriptor of `path`. Raises InputError if it cannot be opened."""
        fd = self._open.get(path)
        if fd is not None:
            return fd
        self.hub.download(path)
        with self._lock:
            if path not in self._open:
                with input_errors(path):
                    self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[path]

    def read(
        self, path: str, offset: int, buffer: memoryview, turns: ComputeSlots = UNLIMITED
    ) -> None:
        """Fill `buffer` from `offset`, and release the slot of `turns` while storage is waited for.

        Raises InputError if the file ends early or cannot be read.
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
        """Close a file that is no longer read."""
        with self._lock:
            fd = self._open.pop(path, None)
        if fd is not None:
            with contextlib.suppress(OSError):  # everything needed has been read
                os.close(fd)

    def done_with(self, path: str, offset: int, count: int) -> None:
        """Tell the kernel that a range need not stay in the page cache; only a hint."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor(path), offset, count, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for path in list(self._open):
            self.discard(path)


def samples_differ(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors of one layout differ in some of SAMPLES places, from end to end.

    False if a file cannot be read, such as one of the Hub that is not on this machine yet.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.nbytes < SAMPLE_BYTES:
        return False
    last = one.nbytes - SAMPLE_BYTES
    try:
        with Path(one.file).open("rb") as first, Path(other.file).open("rb") as second:
            for place in range(0, last + 1, max(1, last // SAMPLES)):
                first.seek(one.offset + place)
                second.seek(other.offset + place)
                if first.read(SAMPLE_BYTES) != second.read(SAMPLE_BYTES):
                    return True
    except OSError:
        pass
    return False


def _cached(fd: int, part: memoryview, offset: int) -> int:
    """Read without waiting where the system has RWF_NOWAIT; return the number of bytes read."""
    try:
        return os.preadv(fd, [part], offset, getattr(os, "RWF_NOWAIT", 0))
    except OSError as error:
        if error.errno in NOT_CACHED:
            return 0
        raise


def _allow_many() -> None:
    """Raise the usual soft limit of 1024 open files: many large models have more shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
