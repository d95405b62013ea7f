"""Quotas that the kernel tells: ext4, xfs and other local file systems."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Iterator, Sequence

from .limits import Limit, Owner, Quota

QUOTACTL_FD = 443
"""The number of the system call, since Linux 5.14, of every processor that torch runs on."""

GET = 0x800007
KINDS = ("user", "group", "project")
REPLY = struct.Struct("@8QI4x")
"""struct if_dqblk: space (hard, soft, in KiB, and used), files alike, two times, what is valid."""

KIB = 1024


def quotas(folder: int, device: str, owners: Sequence[Owner]) -> Iterator[Quota]:
    """Those with a limit, of an open folder on that device."""
    for owner in owners:
        raw = _reply(folder, device, owner)
        if raw is not None:
            hard, soft, used, most, wanted, there, space_time, files_time, _ = REPLY.unpack(raw)
            space = Limit(used, soft * KIB, hard * KIB, _late(space_time))
            files = Limit(there, wanted, most, _late(files_time))
            if hard or soft or most or wanted:
                yield Quota(str(owner), space, files)


def _late(end: int) -> bool:
    return 0 < end < time.time()


def _reply(folder: int, device: str, owner: Owner) -> bytes | None:
    """None where there is no such quota, or no leave to see it, or an old kernel."""
    command = GET << 8 | KINDS.index(owner.kind)
    reply = ctypes.create_string_buffer(REPLY.size)
    if _call("syscall", QUOTACTL_FD, folder, command, owner.number, reply) == 0:
        return reply.raw
    name = ctypes.create_string_buffer(device.encode())
    if device and _call("quotactl", command, name, owner.number, reply) == 0:
        return reply.raw
    return None


def _call(name: str, *words: object) -> int:
    """A function of the C library; -1 if it has none of that name."""
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return -1
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in words]
    return int(function(*given))
