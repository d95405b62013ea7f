"""Stamps of the input files, by which unfinished work is told from that of other bytes.

Size and mtime, which the key of a plan depends on, stay the same where a file is replaced by
`cp --preserve` or written to by `rsync --inplace --times`; inode and ctime do not. They are no part
of the key, since nodes with copies of a file on their own disks share one merge.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ..checkpoint.header import Shard, open_regular
from ..checkpoint.hub import in_snapshot
from ..errors import InputError
from ..planning.plan import Plan
from ..system.machine import Mount, mount_of

SHARED = frozenset({"beegfs", "ceph", "gpfs", "lustre", "nfs", "nfs4", "panfs", "wekafs"})
"""File systems on which a file has the same inode and ctime on every host."""

Stamp = tuple[str, int, int]
"""A place whose stamps can be compared, an inode and a ctime; the place is empty if there is none.
"""

NO_STAMP: Stamp = ("", 0, 0)


def input_stamps(plan: Plan) -> tuple[Stamp, ...]:
    """Return the stamps of all inputs when the plan was made, in an order that the plan sets."""
    plans, mounts = (plan, *plan.lazy), dict[int, Mount]()
    shards = {s.path: s for p in plans for m in p.read_from for s in m.shards}
    return tuple(_stamp(shard, mounts) for shard in shards.values())


def _stamp(shard: Shard, mounts: dict[int, Mount]) -> Stamp:
    path = Path(shard.path)
    if not shard.stamp or in_snapshot(path):  # which a commit names, and which may come again
        return NO_STAMP
    try:
        device = path.stat().st_dev
        if device not in mounts:
            with os.fdopen(open_regular(path), "rb", 0) as file:
                mounts[device] = mount_of(file.fileno())
    except (OSError, InputError):
        return NO_STAMP
    mount = mounts[device]
    if not mount.kind or mount.kind.startswith("fuse"):  # inodes may be numbers of the moment
        return NO_STAMP
    host = "" if mount.kind in SHARED else f"{socket.gethostname()} "
    inode, _, _, ctime = shard.stamp
    return f"{host}{mount.source}", inode, ctime
