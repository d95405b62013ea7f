"""Positioned reads of input files: each is opened once, never mapped; short reads continue."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
import threading
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError, input_errors
from ..system.machine import UNLIMITED, ComputeSlots
from ..tensors.source import StoredTensor
from .hub import Hub
from .torch_zip import place_in_zip

LARGEST_READ = 1 << 30
"""Linux moves at most 2 GiB - 4 KiB in one call."""

MANY_FILES = 1 << 16
OTHER_FILES = 40
"""Open files besides those of models: locks, pipes, modules that are being loaded."""

MOST_BEGINS = 1 << 16
"""Places of tensors in zips that are kept: some 20 MB."""

SAMPLES, SAMPLE_BYTES = 64, 16

NOT_CACHED = (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""A read would wait, or the file system does not know whether it would."""


class Files:
    """Open descriptors by path, shared by all threads (positioned reads have no state).

    At most `most` files stay open; others are opened for every read.
    """

    def __init__(self, hub: Hub | None = None, most: int | None = None) -> None:
        self.most = allow_open_files() - OTHER_FILES if most is None else most
        self.hub = hub or Hub()
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()
        self._begins: dict[tuple[str, int], int] = {}

    def descriptor(self, path: str) -> int | None:
        """Return the descriptor of `path` that stays open; None if too many files are open.

        Raises InputError if it cannot be opened.
        """
        fd = self._open.get(path)
        if fd is not None:
            return fd
        self.hub.download(path)
        with self._lock:
            if path not in self._open and len(self._open) < self.most:
                self._open[path] = _open(path)
            return self._open.get(path)

    def begin(self, tensor: StoredTensor) -> int:
        """Return the byte of its file at which the elements of a tensor begin.

        Raises InputError if they are not in the zip where they should be.
        """
        if not tensor.zip_bytes:
            return tensor.offset
        place = (tensor.file, tensor.offset)
        begin = self._begins.get(place)
        if begin is None:
            kept = self.descriptor(tensor.file)
            fd = _open(tensor.file) if kept is None else kept
            try:
                begin = place_in_zip(fd, tensor)
            finally:
                if kept is None:
                    os.close(fd)
            if len(self._begins) >= MOST_BEGINS:
                self._begins.clear()
            self._begins[place] = begin
        return begin

    def read(
        self, path: str, offset: int, buffer: memoryview, turns: ComputeSlots = UNLIMITED
    ) -> None:
        """Fill `buffer` from `offset`, and release the slot of `turns` while storage is waited for.

        Raises InputError if the file ends early or cannot be read.
        """
        fd = self.descriptor(path)
        if fd is not None:
            self._read(fd, path, offset, buffer, turns)
            return
        fd = _open(path)
        try:
            self._read(fd, path, offset, buffer, turns)
        finally:
            os.close(fd)

    def _read(
        self, fd: int, path: str, offset: int, buffer: memoryview, turns: ComputeSlots
    ) -> None:
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
        if not self.hub.is_not_downloaded(path):
            self._advise(path, offset, count, "POSIX_FADV_WILLNEED")

    def discard(self, path: str) -> None:
        """Close a file that is no longer read."""
        with self._lock:
            fd = self._open.pop(path, None)
        if fd is not None:
            with contextlib.suppress(OSError):  # everything needed has been read
                os.close(fd)

    def done_with(self, path: str, offset: int, count: int) -> None:
        """Tell the kernel that a range need not stay in the page cache; only a hint."""
        self._advise(path, offset, count, "POSIX_FADV_DONTNEED")

    def _advise(self, path: str, offset: int, count: int, advice: str) -> None:
        fd = self.descriptor(path) if hasattr(os, "posix_fadvise") else None
        if fd is not None:
            os.posix_fadvise(fd, offset, count, getattr(os, advice))

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


def sampled_difference(one: StoredTensor, other: StoredTensor) -> tuple[float, float] | None:
    """Return the squared norms of other − one and of one, over SAMPLES places from end to end.

    None if they have another shape or no float dtype, or if a file is not on this machine.
    """
    if one.shape != other.shape or not {one.dtype.name, other.dtype.name} <= _DECODED.keys():
        return None
    count = SAMPLE_BYTES // 2
    last = one.count - count
    if last < 0:
        return None
    sums = [0.0, 0.0]
    try:
        with Path(one.file).open("rb") as first, Path(other.file).open("rb") as second:
            for place in range(0, last + 1, max(1, last // SAMPLES)):
                a, b = _decoded(first, one, place, count), _decoded(second, other, place, count)
                sums[0] += sum((y - x) ** 2 for x, y in zip(a, b, strict=True))
                sums[1] += sum(x * x for x in a)
    except (OSError, struct.error, OverflowError):
        return None
    return sums[0], sums[1]


_DECODED = {"F64": "d", "F32": "f", "F16": "e", "BF16": "H"}


def _decoded(file: BinaryIO, tensor: StoredTensor, place: int, count: int) -> list[float]:
    """Read `count` numbers from element `place` on, without torch."""
    size, code = tensor.dtype.bytes, _DECODED[tensor.dtype.name]
    file.seek(tensor.offset + place * size)
    values = struct.unpack(f"<{count}{code}", file.read(count * size))
    if code != "H":
        return list(values)
    return list(struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(v << 16 for v in values))))


def _cached(fd: int, part: memoryview, offset: int) -> int:
    """Read without waiting where the system has RWF_NOWAIT; return the number of bytes read."""
    try:
        return os.preadv(fd, [part], offset, getattr(os, "RWF_NOWAIT", 0))
    except OSError as error:
        if error.errno in NOT_CACHED:
            return 0
        raise


def _open(path: str) -> int:
    with input_errors(path):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def allow_open_files() -> int:
    """Raise the usual soft limit of 1024 open files, since many large models have more shards.

    Returns the limit that holds now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft == resource.RLIM_INFINITY:
        return MANY_FILES
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft
