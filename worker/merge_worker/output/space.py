"""Disk space a merge needs, and what the file system and quotas leave for it. Imports no torch.

Quotas are those of the users, groups and projects that own what is written into a folder. The
programs of the file system are asked: `lfs quota` (Lustre), `mmlsquota` (GPFS) and `quota` (NFS,
ext and XFS). A missing program, one that hangs and output in another form count as no quota: a
merge that exceeds its quota later ends with exit code 4 and can be resumed.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import re
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError
from ..messages import counted, printable
from ..planning.plan import Plan
from ..system.machine import Mount, mount_of, read_ascii
from ..units import size
from .files import PARTIAL, unfinished
from .side_files import side_file_bytes

SPARE_BYTES = 64 << 20
SPARE_FILES = 16

TIMEOUT_S = 4.0
"""For all programs together."""

KIB = 1024
GPFS_PROGRAMS = "/usr/lpp/mmfs/bin"
UNBOUND = ["0", "0", "4294967295"]
"""The map of user ids outside of any user namespace."""

GET_ATTRIBUTES = 0x801C581F
"""FS_IOC_FSGETXATTR; the fourth number of its answer is the project."""

ATTRIBUTES = struct.Struct("=5I8x")
GRACE_OVER = ("none", "expired")
"""Printed in place of the remaining time when the soft limit may no longer be exceeded."""


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
                f"{out}: needs {size(self.needs)}, only {size(self.free)} are free "
                f"there\n  make room, or choose another folder"
            )
        return [line for quota in self.quotas for line in quota.refuse(out, self.needs, self.files)]


def disk_space(plan: Plan, out: Path) -> DiskSpace:
    """Measure the space for a merge and its stages on the disk of OUT. OSError."""
    place = _nearest(out)
    device = place.stat().st_dev
    needs, files = SPARE_BYTES, SPARE_FILES
    for part, folder in ((plan, out / PARTIAL), *((stage, stage.folder) for stage in plan.stages)):
        if folder is not None and _nearest(folder).stat().st_dev == device:
            needs += part.output_bytes + side_file_bytes(part) - sum(_taken(folder))
            files += len(part.layout.shards)
    disk = os.statvfs(place)
    free, free_files = disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None
    return DiskSpace(place, needs, files, free, free_files, quotas_of(place))


class Owner(NamedTuple):
    """A `user`, a `group` or a `project`, by number."""

    kind: str
    number: int

    def __str__(self) -> str:
        name = str(self.number)
        with contextlib.suppress(KeyError):
            if self.kind == "user":
                name = pwd.getpwuid(self.number).pw_name
            elif self.kind == "group":
                name = grp.getgrgid(self.number).gr_name
        return f"{self.kind} {printable(name)}"


class Limit(NamedTuple):
    """Limits in bytes or files; 0 means unlimited. `late`: the grace period is over."""

    used: int = 0
    soft: int = 0
    hard: int = 0
    late: bool = False

    @property
    def bound(self) -> int:
        """Effective limit; 0 means unlimited."""
        if self.late and self.soft and self.used > self.soft:
            return self.soft
        return self.hard

    @property
    def left(self) -> int | None:
        return max(0, self.bound - self.used) if self.bound else None

    def as_json(self) -> dict[str, int | None]:
        soft, hard = self.soft or None, self.hard or None
        return {"used": self.used, "soft": soft, "hard": hard, "left": self.left}


class Quota(NamedTuple):
    """A quota of one owner on one file system."""

    whose: str
    space: Limit
    files: Limit = Limit()

    def refuse(self, out: Path, needs: int, files: int) -> list[str]:
        """Return warnings about soft limits. Raises OutputError if a merge does not fit."""
        warnings = []
        for limit, more, show in (
            (self.space, needs, size),
            (self.files, files, lambda count: counted(count, "files")),
        ):
            if limit.left is not None and more > limit.left:
                raise OutputError(
                    f"{out}: needs {show(more)}, only {show(limit.left)} are left of the quota of "
                    f"{self.whose} there ({show(limit.bound)})\n"
                    f"  make room, or choose another folder"
                )
            if limit.soft and limit.used + more > limit.soft:
                warnings.append(
                    f"{out}: needs {show(more)}, which is more than the soft limit of "
                    f"{self.whose} there leaves ({show(limit.soft)}, {show(limit.used)} used)"
                )
        return warnings

    def as_json(self) -> dict[str, Any]:
        return {"of": self.whose, "bytes": self.space.as_json(), "files": self.files.as_json()}


def quotas_of(folder: Path) -> tuple[Quota, ...]:
    """Return the quotas with a limit that apply to new files in a folder.

    Takes TIMEOUT_S at most and never fails.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        mount = mount_of(fd)
        read = READERS.get(mount.kind)
        return tuple(read(fd, mount, _owners(fd))) if read and not _exempt() else ()
    finally:
        os.close(fd)


def _nearest(folder: Path) -> Path:
    """Return a folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _taken(folder: Path) -> Iterator[int]:
    """Yield the bytes that existing shards occupy; they are created sparse."""
    for pattern in (unfinished("*"), "*.safetensors", f"{PARTIAL}/{unfinished('*')}"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                yield path.stat().st_blocks * 512


def _owners(folder: int) -> list[Owner]:
    """Return user and group of a new file in an open folder."""
    status = os.fstat(folder)
    group = status.st_gid if status.st_mode & stat.S_ISGID else os.getegid()
    return [Owner("user", os.geteuid()), Owner("group", group)]


def _exempt() -> bool:
    """Return whether this is root of the machine, not of a user's container: root has no quota."""
    return os.geteuid() == 0 and read_ascii(Path("/proc/self/uid_map")).split() in ([], UNBOUND)


def _lustre(folder: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    owners = [*owners, *_project(folder)]
    commands = [["lfs", "quota", "-q", f"-{o.kind[0]}", str(o.number), mount.place] for o in owners]
    for owner, text in zip(owners, _outputs(commands), strict=True):
        words = text.split()
        # A long mount point is followed by a line break.
        if mount.place in words:
            start = words.index(mount.place) + 1
            yield from _from_columns(owner, words[start : start + 8])


def _project(folder: int) -> list[Owner]:
    """Return the project of an open folder, which Lustre reports as local file systems do."""
    answer = bytearray(ATTRIBUTES.size)
    with contextlib.suppress(OSError):
        fcntl.ioctl(folder, GET_ATTRIBUTES, answer)
    project = ATTRIBUTES.unpack(answer)[3]
    return [Owner("project", project)] if project else []


def _linux(folder: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    commands = [["quota", f"-{owner.kind[0]}", "-w", "-p", "-f", mount.place] for owner in owners]
    for owner, text in zip(owners, _outputs(commands), strict=True):
        listed = None
        for line in text.splitlines():
            if head := re.match(r"Disk quotas for (\w+) .* \([ug]id (\d+)\):", line):
                listed = Owner(head[1], int(head[2]))
            elif listed == owner and line.split()[:1] == [mount.source]:
                yield from _from_columns(owner, line.split()[1:9])


def _gpfs(folder: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    """Read `mmlsquota -Y`, which prints fields by name, and space in KiB.

    Without -u or -g it lists the quotas of the calling user alone. A file system with quotas per
    fileset has several rows, none of which names the fileset of the folder.
    """
    device = mount.source.rpartition("/")[2]
    commands = [["mmlsquota", "-Y", f"-{o.kind[0]}", str(o.number), device] for o in owners]
    for owner, text in zip(owners, _outputs(commands), strict=True):
        lines = [line.split(":") for line in text.splitlines()]
        names = next((line for line in lines if "HEADER" in line), [])
        rows = [dict(zip(names, line, strict=False)) for line in lines if "HEADER" not in line]
        kind = {"user": "USR", "group": "GRP"}[owner.kind]
        wanted = {"filesystemName": device, "quotaType": kind, "id": str(owner.number)}
        matches = [row for row in rows if wanted.items() <= row.items()]
        if len(matches) == 1:
            columns = [
                matches[0].get(f"{unit}{field}", "")
                for unit in ("block", "files")
                for field in ("Usage", "Quota", "Limit", "Grace")
            ]
            # "none" means here that no grace period is running.
            yield from _from_columns(owner, ["-" if w == "none" else w for w in columns])


def _from_columns(owner: Owner, words: Sequence[str]) -> Iterator[Quota]:
    """Parse used, soft, hard and grace of space in KiB and of files, unless all are unlimited."""
    words = [word.strip("*[]") for word in words]
    if len(words) == 8 and all(words[i].isdecimal() for i in (0, 1, 2, 4, 5, 6)):
        space, files = _limit(words[:4], KIB), _limit(words[4:], 1)
        if space.soft or space.hard or files.soft or files.hard:
            yield Quota(str(owner), space, files)


def _limit(words: Sequence[str], unit: int) -> Limit:
    used, soft, hard = (int(word) * unit for word in words[:3])
    late = words[3].isdecimal() and 0 < int(words[3]) < time.time()
    return Limit(used, soft, hard, late or words[3] in GRACE_OVER)


READERS: Mapping[str, Callable[[int, Mount, Sequence[Owner]], Iterator[Quota]]] = {
    "lustre": _lustre,
    "gpfs": _gpfs,
    **dict.fromkeys(("nfs", "nfs4", "ext3", "ext4", "xfs"), _linux),
}
"""Readers by type of file system."""


def _outputs(commands: Sequence[Sequence[str]]) -> list[str]:
    """Run programs at the same time; an output is empty if its program fails or takes too long."""
    deadline = time.monotonic() + TIMEOUT_S
    started = [_start(argv) for argv in commands]
    return [_end(process, deadline - time.monotonic()) for process in started]


def _start(argv: Sequence[str]) -> subprocess.Popen[str] | None:
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), GPFS_PROGRAMS))
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C", "PATH": search},
            start_new_session=True,
        )
    except OSError:
        return None


def _end(process: subprocess.Popen[str] | None, seconds: float) -> str:
    """Return what a program printed, whatever its status: `quota` ends with 1 above a limit."""
    if process is None:
        return ""
    try:
        return process.communicate(timeout=max(0.0, seconds))[0]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # a program that waits for a dead server cannot be killed
        return ""
    finally:
        if process.stdout is not None:
            process.stdout.close()
