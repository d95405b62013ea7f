"""How fast the storage gives the inputs, from a few MiB of them; for estimates only. No torch."""

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
LIMIT_S = 2.0
"""After which no further part is begun: some storage takes seconds for the first byte."""


class ReadSpeed(NamedTuple):
    """Bytes read and how long that took; whether they were in memory already."""

    read: int
    seconds: float
    cached: bool

    @property
    def bytes_per_s(self) -> float:
        return self.read / max(self.seconds, 1e-9)


def measure_read_speed(plan: Plan) -> ReadSpeed | None:
    """Read parts spread evenly over all input files; None where that tells nothing or fails."""
    places = _places(plan)
    if not places:
        return None
    began = time.monotonic()

    def one(place: tuple[str, int]) -> tuple[int, bool] | None:
        return _read(*place) if time.monotonic() - began < LIMIT_S else None

    try:
        with ThreadPoolExecutor(4) as pool:
            found = [got for got in pool.map(one, places) if got]
    except OSError:
        return None
    seconds = time.monotonic() - began
    if not found:
        return None
    # Half of it from memory would be neither the one speed nor the other.
    return ReadSpeed(sum(count for count, _ in found), seconds, any(cached for _, cached in found))


def _places(plan: Plan) -> Sequence[tuple[str, int]]:
    """Where to read: the middle of each of PARTS equal shares of all bytes."""
    models = plan.inputs.values()  # those of documents that are made on the way, too
    shards = {s.path: s.size for m in models for s in m.shards if Path(s.path).is_file()}
    total = sum(shards.values())
    if total < 2 * PART * PARTS:
        return []
    found, before = [], 0
    middles = [int((n + 0.5) * total / PARTS) for n in range(PARTS)]
    for path, size in shards.items():
        found += [(path, at - before) for at in middles if before <= at < before + size]
        before += size
    return found


def _read(path: str, offset: int) -> tuple[int, bool]:
    """Bytes of one part, and whether its beginning was in memory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffer = bytearray(PART)
        cached = _in_memory(fd, offset)
        return os.preadv(fd, [buffer], offset), cached
    finally:
        os.close(fd)


def _in_memory(fd: int, offset: int) -> bool:
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    try:
        return os.preadv(fd, [bytearray(1)], offset, flag) == 1
    except OSError:
        return False
