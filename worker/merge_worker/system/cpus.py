"""Number of CPUs this process may use: those the scheduler granted, not those of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the CPUs of the affinity mask, or of the cgroup quota if lower; at least one.

    Containers often see all CPUs of the node but are throttled to their quota by the kernel.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of this process' cgroups and their parents, v1 and v2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        # A container sees the host's name of its cgroup, but its files at the top.
        for folder in (top / group.lstrip("/"), *(top / group.lstrip("/")).parents):
            if not folder.is_relative_to(top):
                break
            words = _read(folder / "cpu.max").split()
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = words or [_read(folder / name).strip() for name in names]
            if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                yield int(words[0]) / int(words[1])  # "max" and -1 mean unlimited


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
