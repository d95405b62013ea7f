"""A file of the result: opened once, at its final size, written at fixed positions from any thread.

Whole pages go past the page cache where that was measured to be faster: on local file systems it
halves the processor time of a merge, leaves the sync at the end nothing to do, and other programs
their cached pages. What remains at the edges of a piece takes the usual way.
"""

from __future__ import annotations

import errno
import os
from ctypes import addressof, c_char
from pathlib import Path

from ..planning.shards import PAGE
from ..system.mounts import mount_of

MEASURED = frozenset({"ext2", "ext3", "ext4", "xfs"})
SHARES = frozenset({"btrfs", "xfs", "bcachefs", "ocfs2"})
"""Where a copy of whole pages takes no space and no time."""

RESERVES = frozenset({"ext4"})
"""Where space can be taken at once, which also makes writing a third faster. Elsewhere it is
written as zeros by the C library, or shared by copies."""

LARGEST_WRITE = 1 << 30
LEAST_DIRECT = 16 * PAGE


class ShardFile:
    """`size` bytes at `path`, those that are there already included. OSError.

    `made`: none were.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self.path, self.made = path, os.fstat(self.fd).st_size == 0
        if os.fstat(self.fd).st_size != size:
            os.ftruncate(self.fd, size)
        kind = mount_of(self.fd).kind
        if kind in RESERVES and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, 0, size)
        self._direct = _open_direct(path) if kind in MEASURED else -1
        self._shares = kind in SHARES

    def write(self, data: memoryview, position: int) -> None:
        """Put `data` at `position`; fastest where its address is as far beyond a page as that."""
        head = -position % PAGE
        whole = (len(data) - head) // PAGE * PAGE
        if self._direct >= 0 and whole >= LEAST_DIRECT and (_address(data) + head) % PAGE == 0:
            try:
                _write(self._direct, data[head : head + whole], position + head)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = -1  # the file system wants larger pages than ours
                whole = 0
            if whole:
                _write(self.fd, data[:head], position)
                data, position = data[head + whole :], position + head + whole
        _write(self.fd, data, position)

    def copy(self, source: int, offset: int, data: memoryview, position: int) -> None:
        """Put `data`, which is what the open file `source` has at `offset`, at `position`."""
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
                    break  # `source` has shrunk; what was read before counts
                done += got
        except (AttributeError, OSError):
            self._shares = False  # such as another file system, an old kernel
        self.write(data[:head], position)
        self.write(data[done:], position + done)

    def forget(self) -> None:
        """Leave the page cache to others; what was not synced before stays in it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        try:
            os.close(self.fd)
        finally:
            if self._direct >= 0:
                os.close(self._direct)


def _write(fd: int, data: memoryview, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done : done + LARGEST_WRITE], position + done)


def _address(data: memoryview) -> int:
    return addressof(c_char.from_buffer(data)) if not data.readonly and len(data) else 1


def _open_direct(path: Path) -> int:
    """A second descriptor that bypasses the page cache; -1 where the system has none."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
    except (AttributeError, OSError):
        return -1
