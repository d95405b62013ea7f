"""Speed of the storage, measured on a few MiB of the inputs; for estimates only. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .plan import Plan

PART = 4 << 20
PARTS = 16


class ReadSpeed(NamedTuple):
    """Bytes and seconds of a measurement; `cached` if any of them were in memory already."""

    read: int
    seconds: float
    cached: bool

    @property
    def bytes_per_s(self) -> float:
        return self.read / max(self.seconds, 1e-9)


def measure_read_speed(
    plan: Plan, part_bytes: int = PART, limit_s: float = 2.0
) -> ReadSpeed | None:
    """Read parts spread evenly over all input files; None if these are too small or unreadable.

    No part is begun after `limit_s`: some storage takes seconds for the first byte.
    """
    began = time.monotonic()

    def read_in_time(place: tuple[str, int]) -> tuple[int, bool] | None:
        return _read(*place, part_bytes) if time.monotonic() - began < limit_s else None

    try:
        with ThreadPoolExecutor(4) as pool:
            parts = [part for part in pool.map(read_in_time, part_places(plan, part_bytes)) if part]
    except OSError:
        return None
    seconds = time.monotonic() - began
    if not parts:
        return None
    # A mix of memory and storage would be the speed of neither.
    return ReadSpeed(sum(count for count, _ in parts), seconds, any(cached for _, cached in parts))


def part_places(plan: Plan, part_bytes: int) -> Sequence[tuple[str, int]]:
    """Return file and offset of the middle of each of PARTS equal shares of all bytes."""
    models = plan.inputs.values()  # those of lazy documents included
    shards = {s.path: s.size for m in models for s in m.shards if Path(s.path).is_file()}
    total = sum(shards.values())
    if total < 2 * part_bytes * PARTS:
        return []
    places, before = [], 0
    middles = [int((n + 0.5) * total / PARTS) for n in range(PARTS)]
    for path, size in shards.items():
        places += [(path, at - before) for at in middles if before <= at < before + size]
        before += size
    return places


def _read(path: str, offset: int, count: int) -> tuple[int, bool]:
    """Return the bytes read of one part, and whether its beginning was in memory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffer = bytearray(count)
        cached = _in_memory(fd, offset)
        return os.preadv(fd, [buffer], offset), cached
    finally:
        os.close(fd)


def _in_memory(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (AttributeError, OSError):  # the system or the file system cannot tell
        return False
