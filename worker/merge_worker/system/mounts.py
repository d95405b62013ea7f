"""Which mount a file is on, as the kernel tells it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """The type of the file system, what is mounted, and where."""

    kind: str = ""
    source: str = ""
    place: str = ""


def mount_of(fd: int) -> Mount:
    """That of an open file; empty if the system does not tell.

    By the number of the mount: on btrfs, files have another device than the mount that they are on.
    """
    try:
        told = Path(f"/proc/self/fdinfo/{fd}").read_text()
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return Mount()
    number = told.partition("mnt_id:")[2].split()[:1]
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[:1] == number:
            return Mount(*map(_plain, (*after.split()[:2], before.split()[4])))
    return Mount()


def _plain(text: str) -> str:
    """Blanks and the like stand there in octal."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)
