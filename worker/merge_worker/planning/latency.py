"""How long the storage of the inputs takes to answer, and how many reads hide that.

Network file systems take milliseconds for a request however small, but serve many at once: a merge
that waits for one read after the other gets a small part of what they could give.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from ..system.machine import mount_of
from ..tensors.source import StoredTensor
from .step import Step

LOCAL = frozenset(
    ["bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "ramfs", "tmpfs", "xfs", "zfs"]
)
"""File systems on disks of this machine: a moving head is slower with more reads at a time, and
others answer soon enough."""

SAMPLE_BYTES = 1 << 20
SAMPLES = 8
PATIENCE_S = 0.25
"""Seconds after which no further sample is read."""

CORE_BYTES = 1 << 30
"""Bytes that a core merges in a second: what the reads should keep up with."""

MOST_READS = 64


def reads_to_keep_up(steps: Iterable[Step], threads: int) -> int:
    """Return how many reads of this storage must be in flight for `threads` cores to keep busy.

    At most MOST_READS; 0 if the inputs are in memory or on disks of this machine.
    """
    waited = list(_answers(steps))
    if not waited:
        return 0
    needed = threads * CORE_BYTES * statistics.median(waited) / SAMPLE_BYTES
    return min(MOST_READS, round(needed))


def _answers(steps: Iterable[Step]) -> Iterator[float]:
    """Yield the seconds that reads of SAMPLE_BYTES take, one from each of some files."""
    largest: dict[str, StoredTensor] = {}
    for tensor in (tensor for step in steps for tensor in step.stored_inputs()):
        if tensor.file not in largest or tensor.nbytes > largest[tensor.file].nbytes:
            largest[tensor.file] = tensor
    began = time.perf_counter()
    for tensor in islice(largest.values(), SAMPLES):
        if time.perf_counter() - began > PATIENCE_S:
            return
        if (seconds := _seconds_to_read(tensor)) is not None:
            yield seconds


def _seconds_to_read(tensor: StoredTensor) -> float | None:
    """Return the seconds for SAMPLE_BYTES of a tensor; None if they say nothing of the storage."""
    buffer = bytearray(min(SAMPLE_BYTES, tensor.nbytes))
    place = tensor.offset + (tensor.nbytes - len(buffer)) // 2
    try:
        fd = os.open(tensor.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not downloaded yet; or the lane that reads it reports the error
        return None
    try:
        if mount_of(fd).kind in LOCAL or _is_cached(fd, place):
            return None
        began = time.perf_counter()
        got = os.preadv(fd, [buffer], place)
        return (time.perf_counter() - began) * SAMPLE_BYTES / max(1, got)
    except OSError:
        return None
    finally:
        os.close(fd)


def _is_cached(fd: int, place: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT) == 1
    except (AttributeError, OSError):  # not in the cache, or the system does not say
        return False
