"""SHA-256 of shards while they are written: pieces that come too early wait in memory.

What does not fit there, and what other processes or an earlier run wrote, is read when its turn
comes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
MOST_WAITING = 64 << 20


@dataclass
class _Shard:
    digest: Any
    reached: int
    waiting: dict[int, tuple[int, bytes]] = field(default_factory=dict)  # end and data by start
    lock: threading.Lock = field(default_factory=threading.Lock)


class Hashes:
    """One digest for each shard, that follows its pieces; `room` bytes of them may wait."""

    def __init__(self, headers: Sequence[bytes], room: int = 0) -> None:
        self._shards = [_Shard(hashlib.sha256(header), len(header)) for header in headers]
        self._room = min(room, MOST_WAITING)
        self._lock = threading.Lock()

    def wrote(self, shard: int, descriptor: int, position: int, data: memoryview) -> None:
        """`data` was written at `position` of an open shard."""
        here = self._shards[shard]
        with here.lock:
            if position != here.reached:
                kept = bytes(data) if self._take(len(data)) else b""
                here.waiting[position] = (position + len(data), kept)
                return
            here.digest.update(data)
            here.reached += len(data)
            while (found := here.waiting.pop(here.reached, None)) is not None:
                end, kept = found
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

    def finish(self, shard: int, path: str, size: int) -> str:
        """The digest of a whole shard as hex; what is not in it yet is read."""
        here = self._shards[shard]
        if here.reached < size:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _update(here, descriptor, size)
            finally:
                os.close(descriptor)
        found: str = here.digest.hexdigest()
        return found


def _update(here: _Shard, descriptor: int, end: int) -> None:
    while here.reached < end:
        data = os.pread(descriptor, min(CHUNK, end - here.reached), here.reached)
        if not data:
            raise OSError(f"ends at byte {here.reached}, not at {end}")
        here.digest.update(data)
        here.reached += len(data)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex (Python 3.10 has no `hashlib.file_digest`)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
