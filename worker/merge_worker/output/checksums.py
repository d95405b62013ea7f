"""Checksums of parts of a file that add up to that of the whole, and SHA-256 of shards.

For the additive checksums a file is a sequence of little-endian 64-bit words, the last one padded
with zeros. `plain` is their sum, `placed` the sum of words times their positions from 1, both
modulo 2^64 (after J. Fletcher, An Arithmetic Checksum for Serial Transmissions, 1982). CRC-32 took
an eighth of the time of a merge, these take a fifth of that. SHA-256, which also detects forgery,
is computed while shards are written; pieces out of order wait in memory, or are read back later.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


WORD = 8
COLUMNS = 1024
CHUNK = 8 << 20
DIGITS = 32
_MASK = (1 << 64) - 1

READ_BYTES = 1 << 20
MOST_WAITING = 64 << 20


class Checksum(NamedTuple):
    """The additive checksum of some bytes of a file."""

    plain: int = 0
    placed: int = 0

    def __str__(self) -> str:
        return f"{self.plain:016x}{self.placed:016x}"


def parse(text: str | bytes) -> Checksum:
    """Parse a checksum from its string."""
    return Checksum(int(text[:16], 16), int(text[16:], 16))


def total(parts: Collection[Checksum]) -> Checksum:
    """Add the checksums of disjoint parts of a file, in any order."""
    return Checksum(sum(p.plain for p in parts) & _MASK, sum(p.placed for p in parts) & _MASK)


def checksum(data: memoryview, position: int) -> Checksum:
    """Compute the checksum of `data`, located at byte `position` of its file."""
    head = min(-position % WORD, len(data))
    tail = (len(data) - head) % WORD
    end = len(data) - tail
    parts = [_of_edge(data[:head], position), _of_edge(data[end:], position + end)]
    for start in range(head, end, CHUNK):
        stop = min(start + CHUNK, end)
        parts.append(_of_words(_words(data[start:stop]), (position + start) // WORD + 1))
    return total(parts)


def _of_edge(data: memoryview, position: int) -> Checksum:
    """Compute the checksum of bytes within one word."""
    place, shift = divmod(position, WORD)
    value = int.from_bytes(data, "little") << 8 * shift
    return Checksum(value & _MASK, value * (place + 1) & _MASK)


def _words(data: memoryview) -> Tensor:
    import torch

    if data.readonly or ctypes.addressof(ctypes.c_char.from_buffer(data)) % WORD:
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=torch.int64)


def _of_words(words: Tensor, first: int) -> Checksum:
    """Compute the checksum of words, the first at position `first`."""
    whole = len(words) // COLUMNS * COLUMNS
    parts = []
    if whole:
        parts.append(_of_table(words[:whole].view(-1, COLUMNS), first))
    if whole < len(words):
        parts.append(_of_table(words[whole:].view(1, -1), first + whole))
    return total(parts)


def _of_table(table: Tensor, first: int) -> Checksum:
    """Compute a checksum from sums of rows and columns, passes over memory without products."""
    rows, columns, steps = table.sum(1), table.sum(0), _steps()
    plain = int(rows.sum())
    placed = plain * first + int((columns * steps[: len(columns)]).sum())
    placed += len(columns) * int((rows * steps[: len(rows)]).sum())
    return Checksum(plain & _MASK, placed & _MASK)


@cache
def _steps() -> Tensor:
    import torch

    return torch.arange(max(COLUMNS, CHUNK // WORD // COLUMNS))


@dataclass
class _Shard:
    digest: Any
    reached: int
    waiting: dict[int, tuple[int, bytes]] = field(default_factory=dict)  # end and data by start
    lock: threading.Lock = field(default_factory=threading.Lock)


class Hashes:
    """A SHA-256 for each shard, updated in order; up to `room` bytes out of order wait."""

    def __init__(self, headers: Sequence[bytes], room: int = 0) -> None:
        self._shards = [_Shard(hashlib.sha256(header), len(header)) for header in headers]
        self._room = min(room, MOST_WAITING)
        self._lock = threading.Lock()

    def wrote(self, shard: int, descriptor: int, position: int, data: memoryview) -> None:
        """Include `data`, written at `position` of an open shard."""
        here = self._shards[shard]
        with here.lock:
            if position != here.reached:
                kept = bytes(data) if self._take(len(data)) else b""
                here.waiting[position] = (position + len(data), kept)
                return
            here.digest.update(data)
            here.reached += len(data)
            while (waiting := here.waiting.pop(here.reached, None)) is not None:
                end, kept = waiting
                if kept:
                    here.digest.update(kept)
                    here.reached = end
                    self._take(-len(kept))
                _update(here, descriptor, end)

    def _take(self, count: int) -> bool:
        with self._lock:
            if count > self._room:
                return False
            self._room -= count
            return True

    def finish(self, shard: int, path: Path, size: int) -> str:
        """Return the digest of a whole shard as hex, after reading the rest of it."""
        here = self._shards[shard]
        if here.reached < size:
            with path.open("rb") as file:
                _update(here, file.fileno(), size)
        return str(here.digest.hexdigest())


def _update(here: _Shard, descriptor: int, end: int) -> None:
    while here.reached < end:
        data = os.pread(descriptor, min(READ_BYTES, end - here.reached), here.reached)
        if not data:
            raise OSError(f"ends at byte {here.reached}, not at {end}")
        here.digest.update(data)
        here.reached += len(data)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex (Python 3.10 has no `hashlib.file_digest`)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
