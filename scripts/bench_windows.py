"""Measure windows and schedules over one run in one pass, beside a single reader and writer.

    python scripts/bench_windows.py FOLDER [--checkpoints 20] [--parameters 270]

The limit: one thread reads every checkpoint once and writes as many files as there are results, at
the same sizes. Both sides start with the checkpoints out of the page cache where that can be asked
for, and end when the results are on the disk. The checkpoints are written anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

WINDOWS, SCHEDULES = (5, 10, 20), ("minus-sqrt", "uniform")
WIDTH, CHUNK = 1024, 16 << 20


def make(run: Path, checkpoints: int, parameters: int) -> None:
    """Write the checkpoints of a run: matrices of 1024 × 4096 in bfloat16."""
    import torch
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(0)
    base = {
        f"layers.{n}.weight": torch.randn(WIDTH, 4 * WIDTH, generator=chance).bfloat16()
        for n in range(max(1, parameters // (4 * WIDTH * WIDTH)))
    }
    for number in range(1, checkpoints + 1):
        path = run / f"step{1000 * number}" / "model.safetensors"
        path.parent.mkdir(parents=True)
        moved = {name: tensor * (1 + number / 100) for name, tensor in base.items()}
        save_file(moved, path, metadata={"format": "pt"})
        with path.open("rb") as file:
            os.fsync(file.fileno())


def forget(paths: list[Path]) -> None:
    """Ask the system to drop the files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_and_write(paths: list[Path], outs: list[Path]) -> float:
    """Return the seconds in which one thread reads all files and writes one for each out."""
    began, buffer = time.monotonic(), bytearray(CHUNK)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    for out in outs:
        with out.open("wb", buffering=0) as file:
            left = paths[0].stat().st_size
            while left:
                left -= file.write(memoryview(buffer)[: min(CHUNK, left)])
            os.fsync(file.fileno())
    return time.monotonic() - began


def merge(run: Path, out: Path) -> dict[str, float]:
    """Return the seconds of the command, those of processors, and the resident MiB of a process."""
    words = ["--windows", ",".join(map(str, WINDOWS)), "--schedule", ",".join(SCHEDULES)]
    command = [sys.executable, "-m", "merge_worker", "average", str(out), str(run), *words]
    began = time.monotonic()
    with subprocess.Popen([*command, "--progress", "off"], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    seconds = time.monotonic() - began
    cpu = used.ru_utime + used.ru_stime
    return {"ours_s": seconds, "ours_cpu_s": cpu, "rss_mib": used.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", type=int, default=max(WINDOWS))
    parser.add_argument("--parameters", type=int, default=270, help="of a checkpoint, in millions")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    run, out = given.folder / "run", given.folder / "out"
    results = [given.folder / f"copy{n}" for n in range(len(WINDOWS) * len(SCHEDULES))]
    # In a process of its own: a child begins with the greatest memory of its parent.
    maker = get_context("spawn").Process(
        target=make, args=(run, given.checkpoints, given.parameters * 10**6)
    )
    maker.start()
    maker.join()
    paths = sorted(run.glob("*/*.safetensors"))
    rows = []
    for _ in range(given.rounds):
        forget(paths)
        limit = read_and_write(paths, results)
        for path in results:
            path.unlink()
        forget(paths)
        ours = merge(run, out)
        shutil.rmtree(out)
        rows.append({"limit_s": limit, **ours, "ratio": ours["ours_s"] / limit})
        print(json.dumps({k: round(v, 2) for k, v in rows[-1].items()}), flush=True)
    size = paths[0].stat().st_size
    shutil.rmtree(run)
    best = min(rows, key=lambda row: row["ratio"])
    print(f"{len(paths)} checkpoints of {size / 1e9:.2f} GB, {len(results)} results in one pass")
    print(f"ours {best['ours_s']:.1f} s, of processors {best['ours_cpu_s']:.1f} s")
    print(f"largest process {best['rss_mib']:.0f} MiB")
    print(f"one thread that reads all and writes as many {best['limit_s']:.1f} s")
    print(f"ratio {best['ratio']:.2f}")


if __name__ == "__main__":
    main()
