"""The mount that a file is on, as reported by the kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """A mount: type of the file system, device, mount point."""

    kind: str = ""
    source: str = ""
    place: str = ""


def mount_of(fd: int) -> Mount:
    """Return the mount of an open file, or an empty Mount if the kernel does not report it.

    Looked up by mount id: on btrfs, files have another device number than their mount.
    """
    try:
        status = Path(f"/proc/self/fdinfo/{fd}").read_text()
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return Mount()
    number = status.partition("mnt_id:")[2].split()[:1]
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[:1] == number:
            return Mount(*map(_plain, (*after.split()[:2], before.split()[4])))
    return Mount()


def _plain(text: str) -> str:
    """Decode blanks and other characters, which the kernel writes in octal."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
