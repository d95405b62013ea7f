"""Whether what a merge writes has room where it goes. No torch."""

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
    """What a merge still needs where OUT goes, with a margin, and what there is."""

    place: Path  # the nearest folder that exists
    needs: int
    files: int
    free: int
    free_files: int | None  # None where the file system does not count them
    quotas: tuple[Quota, ...] = ()

    def refuse(self, out: Path) -> list[str]:
        """Warnings. OutputError where it does not fit."""
        if self.free_files == 0:
            raise OutputError(f"{out}: no more files fit there (inodes); choose another folder")
        if self.needs > self.free:
            raise OutputError(
                f"{out}: needs {gigabytes(self.needs)}, only {gigabytes(self.free)} are free "
                f"there\n  make room, or choose another folder"
            )
        return [line for quota in self.quotas for line in quota.refuse(out, self.needs, self.files)]


def disk_space(plan: Plan, out: Path) -> DiskSpace:
    """Look at the disk. OSError."""
    place = out
    while not place.exists():
        place = place.parent
    device = place.stat().st_dev
    needs, files = SPARE_BYTES, SPARE_FILES
    for each, folder in ((plan, out / PARTIAL), *((stage, stage.folder) for stage in plan.stages)):
        if folder is not None and _device(folder) == device:
            needs += each.output_bytes - sum(_taken(folder))
            files += len(each.layout.shards)
    found = os.statvfs(place)
    return DiskSpace(
        place,
        needs,
        files,
        found.f_bavail * found.f_frsize,
        found.f_favail if found.f_files else None,
        quotas_of(place),
    )


def _device(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev


def _taken(folder: Path) -> Iterator[int]:
    """What shards there have of the disk by now; they are made with holes."""
    for pattern in (unfinished("*"), "*.safetensors", f"{PARTIAL}/{unfinished('*')}"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                yield path.stat().st_blocks * 512
