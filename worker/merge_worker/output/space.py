"""Disk space a merge needs, and space available in its output folder. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from ..planning.plan import Plan
from ..units import gigabytes
from .files import PARTIAL, unfinished
from .quota import Quota, quotas_of

SPARE_BYTES = 64 << 20
SPARE_FILES = 16


@dataclass(frozen=True)
class DiskSpace:
    """Space and files a merge still needs, with a margin, and those available."""

    place: Path  # the nearest folder that exists
    needs: int
    files: int
    free: int
    free_files: int | None  # None where the file system does not count them
    quotas: tuple[Quota, ...] = ()

    def refuse(self, out: Path) -> list[str]:
        """Return warnings about quotas. Raises OutputError if the merge does not fit."""
        if self.free_files == 0:
            raise OutputError(f"{out}: no free inodes there; choose another folder")
        if self.needs > self.free:
            raise OutputError(
                f"{out}: needs {gigabytes(self.needs)}, only {gigabytes(self.free)} are free "
                f"there\n  make room, or choose another folder"
            )
        return [line for quota in self.quotas for line in quota.refuse(out, self.needs, self.files)]


def disk_space(plan: Plan, out: Path) -> DiskSpace:
    """Measure the space for a merge and its stages on the disk of OUT. OSError."""
    place = out
    while not place.exists():
        place = place.parent
    device = place.stat().st_dev
    needs, files = SPARE_BYTES, SPARE_FILES
    for part, folder in ((plan, out / PARTIAL), *((stage, stage.folder) for stage in plan.stages)):
        if folder is not None and _device(folder) == device:
            needs += part.output_bytes - sum(_taken(folder))
            files += len(part.layout.shards)
    disk = os.statvfs(place)
    return DiskSpace(
        place,
        needs,
        files,
        disk.f_bavail * disk.f_frsize,
        disk.f_favail if disk.f_files else None,
        quotas_of(place),
    )


def _device(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev


def _taken(folder: Path) -> Iterator[int]:
    """Yield the bytes that existing shards occupy; they are created sparse."""
    for pattern in (unfinished("*"), "*.safetensors", f"{PARTIAL}/{unfinished('*')}"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                yield path.stat().st_blocks * 512
