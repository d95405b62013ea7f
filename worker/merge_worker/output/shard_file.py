"""A shard: opened once, at its final size, written at fixed positions from any thread.

Whole pages bypass the page cache where that was measured to be faster: on local file systems it
halves the CPU time of a merge, leaves nothing to the final fsync, and keeps the cached pages of
other programs. The edges of a piece are written through the cache.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..planning.shards import PAGE
from ..system.machine import mount_of

MEASURED = frozenset({"ext2", "ext3", "ext4", "xfs"})
SHARES = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})
"""File systems on which copies of whole pages share their blocks."""

RESERVES = frozenset({"ext4"})
"""File systems that allocate space at once, which also makes writing a third faster. Elsewhere the
C library would write zeros, or copies share blocks."""

LARGEST_WRITE = 1 << 30
LEAST_DIRECT = 16 * PAGE
WRITEBACK_PERIOD_S = 0.25
START_WRITING = 2
"""SYNC_FILE_RANGE_WRITE: begin, do not wait."""


class ShardFile:
    """An open file of `size` bytes at `path`; existing contents are kept. OSError.

    `created`: the file was empty.
    """

    def __init__(self, path: Path, size: int, direct: bool = True) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        status = os.fstat(self.fd)
        self.path, self.size = path, size
        self.inode, self.created = status.st_ino, status.st_size == 0
        if status.st_size != size:
            os.ftruncate(self.fd, size)
        kind = mount_of(self.fd).kind
        if kind in RESERVES and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, 0, size)
        self._direct = _open_direct(path) if direct and kind in MEASURED else -1
        self._shares = kind in SHARES

    def is_in_place(self) -> bool:
        """Whether the name of the file is still that of this open file, of the same size.

        An open file keeps its inode for itself, so that no new one can have the same.
        """
        try:
            named, own = self.path.lstat(), os.fstat(self.fd)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, own) and own.st_size == self.size

    def write(self, data: memoryview, position: int) -> None:
        """Write `data` at `position`; fastest if address and position have one offset in a page."""
        head = -position % PAGE
        whole = (len(data) - head) // PAGE * PAGE
        if self._direct >= 0 and whole >= LEAST_DIRECT and (_address(data) + head) % PAGE == 0:
            try:
                _write(self._direct, data[head : head + whole], position + head)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = -1  # the file system requires larger pages
                whole = 0
            if whole:
                _write(self.fd, data[:head], position)
                data, position = data[head + whole :], position + head + whole
        _write(self.fd, data, position)

    def copy(self, source: int, offset: int, data: memoryview, position: int) -> None:
        """Copy `data` to `position`; the open file `source` holds the same bytes at `offset`."""
        head = -position % PAGE
        whole = (len(data) - head) // PAGE * PAGE
        if not self._shares or whole <= 0 or (offset - position) % PAGE:
            self.write(data, position)
            return
        done = head
        try:
            while done < head + whole:
                left = head + whole - done
                got = os.copy_file_range(source, self.fd, left, offset + done, position + done)
                if got == 0:
                    break  # `source` has shrunk; `data` is authoritative
                done += got
        except (AttributeError, OSError):
            self._shares = False  # such as another file system, an old kernel
        self.write(data[:head], position)
        self.write(data[done:], position + done)

    def drop_cached(self) -> None:
        """Drop the file from the page cache, except pages that are not synced yet."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        try:
            os.close(self.fd)
        finally:
            if self._direct >= 0:
                os.close(self._direct)


@contextmanager
def early_writeback(descriptors: Sequence[int]) -> Iterator[None]:
    """Start writeback of open files periodically, so that the final fsync hardly waits."""
    start, over = _sync_file_range(), threading.Event()

    def run() -> None:
        while start is not None and not over.wait(WRITEBACK_PERIOD_S):
            for descriptor in descriptors:
                start(descriptor, 0, 0, START_WRITING)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write(fd: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + LARGEST_WRITE], position + done)


def _address(data: memoryview) -> int:
    if data.readonly or not len(data):
        return 1
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def _open_direct(path: Path) -> int:
    """Open a second descriptor that bypasses the page cache; -1 if there is none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    except (AttributeError, OSError):
        return -1


def _sync_file_range() -> ctypes._NamedFuncPointer | None:
    """Return the C function, a mere hint, or None on systems other than Linux."""
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
