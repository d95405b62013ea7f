"""The machine: usable CPUs, slots for computing on them, memory of processes, mounts of files."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_MMAP_THRESHOLD = -3
"""The parameter of mallopt(3) for the size from which blocks have pages of their own."""


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs of the affinity mask, or of the cgroup quota if lower; at least one.

    Containers often see all CPUs of the node but are throttled to their quota by the kernel.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


class ComputeSlots:
    """A context that at most `count` lanes enter at a time; any number if it is 0.

    Two lanes computing on one CPU evict each other's blocks from its cache and pass the
    interpreter's lock back and forth at every operation, which costs a tenth of the time.
    """

    def __init__(self, count: int = 0) -> None:
        self.limited = count > 0
        self._free = threading.Semaphore(count)

    def __enter__(self) -> None:
        if self.limited:
            self._free.acquire()

    def __exit__(self, *error: object) -> None:
        if self.limited:
            self._free.release()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Let another lane in while the block runs; only for a lane that is inside."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


UNLIMITED = ComputeSlots()  # slots without a limit, which take no lock


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not report it."""
    fields = read_ascii(Path("/proc/self/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def return_freed_memory() -> None:
    """Let the allocator of C give back every block of a MiB or more when it is freed.

    glibc keeps blocks of up to 32 MiB once one was freed, and tensors of many sizes leave gaps
    between them. Each block then costs its page faults anew. Other allocators are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def private_bytes(process: int) -> int:
    """Return the memory that another process shares with none."""
    lines = read_ascii(Path(f"/proc/{process}/smaps_rollup")).splitlines()[1:]
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts.get("Private_Dirty", "0").split()[0]) * 1024


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
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return Mount()
    number = read_ascii(Path(f"/proc/self/fdinfo/{fd}")).partition("mnt_id:")[2].split()[:1]
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[:1] == number:
            return Mount(*map(_plain, (*after.split()[:2], before.split()[4])))
    return Mount()


def read_ascii(path: Path) -> str:
    """Return the text of an ASCII file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process' cgroups and their parents, v1 and v2."""
    for line in read_ascii(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        # A container sees the host's name of its cgroup, but its files at the top.
        for folder in (top / group.lstrip("/"), *(top / group.lstrip("/")).parents):
            if not folder.is_relative_to(top):
                break
            words = read_ascii(folder / "cpu.max").split()
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = words or [read_ascii(folder / name).strip() for name in names]
            if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                yield int(words[0]) / int(words[1])  # "max" and -1 mean unlimited


def _plain(text: str) -> str:
    """Decode blanks and other characters, which the kernel writes in octal."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)
