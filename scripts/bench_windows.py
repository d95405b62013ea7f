"""Measure windows and schedules over one run in one pass, beside a single reader and writer.

    python scripts/bench_windows.py FOLDER [--checkpoints 20] [--parameters 270]

The limit: one thread reads every checkpoint once and writes as many files as there are results, at
the same sizes. Both sides start with the checkpoints out of the page cache where that can be asked
for, and end when the results are on the disk. The checkpoints are random and are written anew.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

WINDOWS, SCHEDULES = (5, 10, 20), ("minus-sqrt", "uniform")
WIDTH, CHUNK = 1024, 16 << 20


def make(folder: Path, number: int, parameters: int) -> Path:
    """Write checkpoint `number` of `parameters` in all, of matrices of 1024 × 4096 in bfloat16."""
    shared, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number)
    count = max(1, parameters // (4 * WIDTH * WIDTH))
    path = folder / f"step{1000 * number}" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(
        {
            f"layers.{n}.weight": (
                torch.randn(WIDTH, 4 * WIDTH, generator=shared)
                + 0.02 * torch.randn(WIDTH, 4 * WIDTH, generator=own)
            ).bfloat16()
            for n in range(count)
        },
        path,
        metadata={"format": "pt"},
    )
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


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


def merge(run: Path, out: Path) -> tuple[float, int]:
    """Return the seconds of the command, and the greatest resident bytes of a process."""
    words = ["--windows", ",".join(map(str, WINDOWS)), "--schedule", ",".join(SCHEDULES)]
    command = [sys.executable, "-m", "merge_worker", "average", str(out), str(run), *words]
    began = time.monotonic()
    subprocess.run([*command, "--progress", "off"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", type=int, default=max(WINDOWS))
    parser.add_argument("--parameters", type=int, default=270, help="of a checkpoint, in millions")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    run, out = given.folder / "run", given.folder / "out"
    results = [given.folder / f"copy{n}" for n in range(len(WINDOWS) * len(SCHEDULES))]
    paths = [
        make(run, number, given.parameters * 10**6) for number in range(1, given.checkpoints + 1)
    ]
    rows = []
    for _ in range(given.rounds):
        forget(paths)
        limit = read_and_write(paths, results)
        for path in results:
            path.unlink()
        forget(paths)
        ours, resident = merge(run, out)
        shutil.rmtree(out)
        rows.append({"limit_s": limit, "ours_s": ours, "ratio": ours / limit, "rss": resident})
        print(json.dumps({k: round(v, 2) for k, v in rows[-1].items()}), flush=True)
    size = paths[0].stat().st_size
    shutil.rmtree(run)
    best = min(rows, key=lambda row: row["ratio"])
    print(f"{len(paths)} checkpoints of {size / 1e9:.2f} GB, {len(results)} results in one pass")
    print(f"ours {best['ours_s']:.1f} s, largest process {best['rss'] / 2**20:.0f} MiB")
    print(f"one thread that reads all and writes as many {best['limit_s']:.1f} s")
    print(f"ratio {best['ratio']:.2f}")


if __name__ == "__main__":
    main()
