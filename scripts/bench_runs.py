"""Measured runs for scripts/bench: commands of one or several processes, and the floor."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FLOOR_BLOCK = 1 << 20
SAMPLED_S = 0.1


class Failed(Exception):
    """A command that did not end with 0, with its log."""


class Run(NamedTuple):
    """One run of a contender; seconds, and bytes at the peak of all its processes together."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    parts: dict[str, float]


def drop_page_cache(files: Sequence[Path]) -> None:
    """Drop these files from the page cache, or everything if the system permits it."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    switch = Path("/proc/sys/vm/drop_caches")
    if os.access(switch, os.W_OK):
        switch.write_text("1\n", encoding="ascii")


def fill_page_cache(files: Sequence[Path]) -> None:
    """Read those files of which the page cache has lost a part to other programs."""
    buffer = memoryview(bytearray(FLOOR_BLOCK))
    for file in files:
        if cached_share(file) < 1:
            with file.open("rb", buffering=0) as source:
                while source.readinto(buffer):
                    pass


def cached_share(file: Path) -> float:
    """Return the share of a file in the page cache, by mincore over an untouched mapping."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size, page = file.stat().st_size, os.sysconf("SC_PAGESIZE")
    pages = -(-size // page)
    descriptor = os.open(file, os.O_RDONLY)
    address = libc.mmap(None, size, 1, 1, descriptor, 0)  # PROT_READ, MAP_SHARED
    resident = (ctypes.c_ubyte * pages)()
    libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), resident)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
    os.close(descriptor)
    return sum(flag & 1 for flag in resident) / pages


def command(argv: Sequence[str], log: Path, ranks: int = 1, bind: bool = False) -> Run:
    """Run a command as `ranks` processes at once. Raises Failed if one of them fails.

    `bind` puts each rank on a processor of its own, as srun and mpiexec do.
    """
    processors = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ended: list[tuple[int, float, int]] = []
    peak = 0

    def wait(process: subprocess.Popen[bytes]) -> None:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        spent = usage.ru_utime + usage.ru_stime
        ended.append((process.returncode, spent, usage.ru_maxrss * 1024))

    started = time.perf_counter()
    with log.open("wb") as sink:
        waiting, running = [], []
        for rank in range(ranks):
            place = {"RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
            own = ["taskset", "-c", str(processors[rank % len(processors)])] if bind else []
            shared = ["--ranks", "auto"] if ranks > 1 else []
            process = subprocess.Popen(
                [*own, *argv, *shared],
                stdout=sink,
                stderr=sink,
                env={**environment, **place},
                cwd=ROOT,
            )
            waiting.append(threading.Thread(target=wait, args=(process,)))
            waiting[-1].start()
            running.append(process.pid)
        while any(thread.is_alive() for thread in waiting):
            peak = max(peak, sum(map(tree_bytes, running)))
            for thread in waiting:
                thread.join(SAMPLED_S / ranks)
    wall = time.perf_counter() - started
    codes = [code for code, _, _ in ended if code]
    if codes:
        raise Failed(f"{' '.join(argv)}\n  ended with {codes[0]}; see {log}")
    # The kernel reports the peak of each process; samples give that of all.
    peak = max(peak, *(largest for *_, largest in ended))
    return Run(wall, sum(cpu for _, cpu, _ in ended), peak, {})


def tree_bytes(process: int) -> int:
    """Return the memory of a process and its descendants; shared pages count once."""
    place = Path(f"/proc/{process}")
    try:
        text = (place / "smaps_rollup").read_text(encoding="ascii")
        below = (place / "task" / str(process) / "children").read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return 0
    own = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0")
    return int(own.split()[1]) * 1024 + sum(map(tree_bytes, map(int, below)))


def floor(inputs: Sequence[Path], output: Path, results: int = 1) -> Run:
    """Read the inputs and write this rank's share of the results, block by block."""
    output.mkdir(parents=True)
    buffer = memoryview(bytearray(FLOOR_BLOCK))
    lanes = len({file.parent for file in inputs})
    started, cpu = time.perf_counter(), time.process_time()
    owed = 0.0
    with (output / "floor").open("wb", buffering=0) as sink:
        for file in inputs:
            with file.open("rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    owed += count / lanes * results
                    while owed >= FLOOR_BLOCK:
                        owed -= sink.write(buffer)
        sink.write(buffer[: int(owed)])
        copied = time.perf_counter() - started
        os.fsync(sink.fileno())
        synced = time.perf_counter() - started
    return Run(copied, time.process_time() - cpu, 0, {"with_fsync_s": synced})


def machine() -> dict[str, object]:
    models = Path("/proc/cpuinfo").read_text("utf-8").split("model name")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[1].splitlines()[0].strip("\t :") if models[1:] else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
