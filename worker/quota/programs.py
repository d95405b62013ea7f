"""Quotas that only programs tell: of Lustre, NFS, GPFS and btrfs. One that is not there is not
missed, one that hangs is left alone, and what it prints is believed only where it is understood.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..mounts import Mount
from .limits import Limit, Owner, Quota

LIMIT_S = 4.0
"""For all programs together."""

KIB = 1024
GPFS_PROGRAMS = "/usr/lpp/mmfs/bin"
GET_ATTRIBUTES = 0x801C581F
"""FS_IOC_FSGETXATTR; the project is the fourth number of what it tells."""

ATTRIBUTES = struct.Struct("=5I8x")
OVER = ("none", "expired")
"""In place of the time that is left over a soft limit, where it has run out."""


def quotas(folder: Path, held: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    """Those with a limit that the program for this kind of mount tells."""
    return ASK[mount.kind](folder, held, mount, owners)


def _lustre(folder: Path, held: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    every = [*owners, *(_project(held) if owners else ())]
    asked = [
        ["lfs", "quota", "-q", f"-{owner.kind[0]}", str(owner.number), mount.place]
        for owner in every
    ]
    for owner, text in zip(every, _answers(asked), strict=True):
        words = text.split()
        # Long names of mounts are followed by the end of the line.
        if mount.place in words:
            start = words.index(mount.place) + 1
            yield from _of_columns(owner, words[start : start + 8])


def _project(held: int) -> list[Owner]:
    """That of a folder; Lustre tells it as local file systems do."""
    room = bytearray(ATTRIBUTES.size)
    with contextlib.suppress(OSError):
        fcntl.ioctl(held, GET_ATTRIBUTES, room)
    project = ATTRIBUTES.unpack(room)[3]
    return [Owner("project", project)] if project else []


def _nfs(folder: Path, held: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    asked = [["quota", f"-{owner.kind[0]}", "-w", "-p", "-f", mount.place] for owner in owners]
    for owner, text in zip(owners, _answers(asked), strict=True):
        number = None
        for line in text.splitlines():
            if head := re.match(r"Disk quotas for (\w+) .* \([ug]id (\d+)\):", line):
                number = Owner(head[1], int(head[2]))
            elif number == owner and line.split()[:1] == [mount.source]:
                yield from _of_columns(owner, line.split()[1:9])


def _of_columns(owner: Owner, words: Sequence[str]) -> Iterator[Quota]:
    """Used, soft, hard and time, of space in KiB and of files, as `lfs` and `quota` print them."""
    words = [word.strip("*[]") for word in words]
    if len(words) == 8 and all(words[i].isdecimal() for i in (0, 1, 2, 4, 5, 6)):
        used, soft, hard = (int(word) * KIB for word in words[:3])
        there, wanted, most = (int(word) for word in words[4:7])
        if soft or hard or wanted or most:
            space = Limit(used, soft, hard, _late(words[3]))
            yield Quota(str(owner), space, Limit(there, wanted, most, _late(words[7])))


def _late(word: str) -> bool:
    return word in OVER or (word.isdecimal() and 0 < int(word) < time.time())


def _gpfs(folder: Path, held: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    """Where every fileset has its own quotas of users, nobody here knows which one it is."""
    if not owners:
        return
    device = mount.source.rpartition("/")[2]
    lines = [line.split(":") for line in _answers([["mmlsquota", "-Y", device]])[0].splitlines()]
    names = next((line for line in lines if "HEADER" in line), [])
    rows = [dict(zip(names, line, strict=False)) for line in lines if "HEADER" not in line]
    for owner in owners:
        kind = {"user": "USR", "group": "GRP"}[owner.kind]
        asked = (device, kind, str(owner.number))
        mine = [
            r for r in rows if (r.get("filesystemName"), r.get("quotaType"), r.get("id")) == asked
        ]
        if len(mine) == 1:
            columns = [
                mine[0].get(f"{what}{which}", "")
                for what in ("block", "files")
                for which in ("Usage", "Quota", "Limit", "Grace")
            ]
            # There the word for no time is that of Lustre for one that has run out.
            yield from _of_columns(owner, [word.replace("none", "-") for word in columns])


def _of_gpfs(row: Mapping[str, str]) -> list[str]:
    return [row.get("filesystemName", ""), row.get("quotaType", "")[:1], row.get("id", "")]


def _btrfs(folder: Path, held: int, mount: Mount, owners: Sequence[Owner]) -> Iterator[Quota]:
    """Of the subvolume, which hold for root too, who alone may see them."""
    asked = ["btrfs", "qgroup", "show", "-reF", "--raw", str(folder)]
    for line in _answers([asked])[0].splitlines() if os.geteuid() == 0 else ():
        if found := re.match(r"(\d+/\d+) +(\d+) +(\d+) +(\d+|none) +(\d+|none)\b", line):
            for used, most in ((found[2], found[4]), (found[3], found[5])):
                if most != "none":
                    yield Quota(f"qgroup {found[1]}", Limit(int(used), hard=int(most)))


Ask = Callable[[Path, int, Mount, Sequence[Owner]], Iterator[Quota]]
ASK: Mapping[str, Ask] = {
    "lustre": _lustre,
    "nfs": _nfs,
    "nfs4": _nfs,
    "gpfs": _gpfs,
    "btrfs": _btrfs,
}


def _answers(commands: Sequence[Sequence[str]]) -> list[str]:
    """What they print, run at the same time; nothing of one that fails to, or takes too long."""
    began = time.monotonic()
    started = [_start(argv) for argv in commands]
    return [_end(each, began + LIMIT_S - time.monotonic()) for each in started]


def _start(argv: Sequence[str]) -> subprocess.Popen[str] | None:
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), GPFS_PROGRAMS))
    program = shutil.which(argv[0], path=search)
    if program is None:
        return None
    try:
        return subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return None


def _end(process: subprocess.Popen[str] | None, seconds: float) -> str:
    """Their exit codes differ: `quota` has another one where a limit is exceeded."""
    if process is None:
        return ""
    try:
        return process.communicate(timeout=max(0.0, seconds))[0]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)  # one that waits for a dead server does not even die
        return ""
    finally:
        if process.stdout is not None:
            process.stdout.close()
