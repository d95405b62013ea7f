"""The quotas of a folder: who writes there may take so much. What cannot be asked is not told.

The kernel tells those of local file systems; those of network file systems their own programs, and
only where one is on the PATH. Quotas of projects on local file systems are in what `statvfs` tells.

Jobs do not carry this: who submits one looks before (launcher/preflight.py), and a quota that is
used up half-way ends a merge with code 4, from where it goes on.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..mounts import mount_of
from . import kernel, programs
from .limits import Limit, Owner, Quota

__all__ = ["Limit", "Quota", "quotas_of"]

UNBOUND = " 0 0 4294967295"


def quotas_of(folder: Path) -> tuple[Quota, ...]:
    """Those that hold for a new file there. Takes a few seconds at most, and never fails."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        mount = mount_of(held)
        owners = [] if _exempt() else _owners(held)
        if mount.kind in programs.ASK:
            return tuple(programs.quotas(folder, held, mount, owners))
        return tuple(kernel.quotas(held, mount.source, owners))
    finally:
        os.close(held)


def _owners(folder: int) -> list[Owner]:
    """Of a new file in an open folder."""
    found = os.fstat(folder)
    inherits = found.st_mode & 0o2000
    return [Owner("user", os.geteuid()), Owner("group", found.st_gid if inherits else os.getegid())]


def _exempt() -> bool:
    """Root of the machine, other than that of a container of a user, is held by no quota."""
    try:
        bounds = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        bounds = UNBOUND.split()
    return os.geteuid() == 0 and bounds == UNBOUND.split()
