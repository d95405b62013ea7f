"""Time the build of a mixture of experts against mergekit-moe and a copy of its bytes, in turn.

    scripts/bench_moe.py --work /tmp/bench --params 1.1e9 --experts 3 --repeat 3
    scripts/bench_moe.py --work /tmp/bench --peer ~/peer/bin/mergekit-moe

The copy is one thread that reads as many bytes as the result has from the models in turn and
writes them, through the page cache. Models are in the page cache before every run. The peak is
that of all processes together; pages of mapped files count to the process that maps them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import bench_checkpoints
from bench_runs import FLOOR_BLOCK, Run, command, machine

GIB = 2**30


def copied(inputs: Sequence[Path], output: Path, size: int, synced: bool) -> Run:
    """Copy `size` bytes of the inputs block by block: one thread, one reused buffer.

    `synced` waits until they are on the disk, as a merge does.
    """
    output.mkdir(parents=True)
    buffer = memoryview(bytearray(FLOOR_BLOCK))
    started, cpu, done = time.perf_counter(), time.process_time(), 0
    share = size // len(inputs)
    with (output / "copy").open("wb", buffering=0) as sink:
        for file in inputs:
            left = share
            with file.open("rb", buffering=0) as source:
                while left > 0 and (got := source.readinto(buffer[: min(left, FLOOR_BLOCK)])):
                    sink.write(buffer[:got])
                    left -= got
                    done += got
        if synced:
            os.fsync(sink.fileno())
    return Run(time.perf_counter() - started, time.process_time() - cpu, 0, {"bytes": done})


def warm(files: Sequence[Path]) -> None:
    """Read all files once, so that they are in the page cache."""
    buffer = bytearray(FLOOR_BLOCK)
    for file in files:
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--params", type=float, default=1.1e9)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="path of mergekit-moe")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    made = argparse.Namespace(
        work=args.work, params=args.params, models=args.experts, dtype="bfloat16",
        shard_size=5e9, delta=bench_checkpoints.DELTA, one_tensor=False,
    )  # fmt: skip
    folders = bench_checkpoints.make(made)
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    recipe = args.work / "moe.yml"
    experts = [{"source_model": str(folder)} for folder in folders]
    body = {"base_model": str(folders[0]), "gate_mode": "random", "dtype": "bfloat16"}
    recipe.write_text(json.dumps({**body, "architecture": "mixtral", "experts": experts}))
    out, log = args.work / "out", args.work / "log"
    copies = {"copy": False, "synced copy": True}
    runs: dict[str, list[Run]] = {name: [] for name in (*copies, "here", "mergekit-moe")}
    size = 0
    for _ in range(args.repeat):
        ours = [sys.executable, "-m", "merge_worker", "merge", str(recipe), str(out)]
        contenders = {"here": [*ours, "--progress", "off"]}
        if args.peer:
            contenders["mergekit-moe"] = [str(args.peer), str(recipe), str(out)]
        for name, argv in contenders.items():
            warm(files)
            shutil.rmtree(out, ignore_errors=True)
            run = command(argv, log)
            manifest = out / "merge_manifest.json"
            if manifest.is_file():
                run = run._replace(parts=json.loads(manifest.read_text())["timings"])
            runs[name].append(run)
            size = size or sum(f.stat().st_size for f in out.glob("*.safetensors"))
        for name, synced in copies.items():
            warm(files)
            shutil.rmtree(out, ignore_errors=True)
            runs[name].append(copied(files, out, size, synced))
        shutil.rmtree(out)
    facts = {"machine": machine(), "bytes": size, "params": args.params, "experts": args.experts}
    for name, several in runs.items():
        if several:
            walls = [run.wall_s for run in several]
            facts[name] = {
                "wall_s": [round(wall, 2) for wall in walls],
                "median_s": round(statistics.median(walls), 2),
                "stream_s": [run.parts["stream_s"] for run in several if "stream_s" in run.parts],
                "cpu_s": round(statistics.median(run.cpu_s for run in several), 2),
                "peak_gib": round(max(run.peak_bytes for run in several) / GIB, 2),
            }
    text = json.dumps(facts, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
