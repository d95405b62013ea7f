"""Time a merge whose inputs lie on a storage that answers late, by the reads in flight, in turn.

    scripts/bench_latency.py --work /tmp/bench --params 2.7e8 --latency 0.005,0.02 --reads 1,16,auto

The storage is the FUSE file system of the tests, without a page cache: it answers every request of
128 KiB so many seconds late, any number of them at a time. Needs root. Seconds are those of
streaming, from which torch's loading is subtracted, and medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bench_checkpoints
from bench_runs import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from support.broken_mounts import Mount, make_mount

REQUEST_BYTES = 128 << 10


def streaming_s(mount: Mount, latency: str, reads: str, out: Path) -> float:
    """Merge the models on the mount, and return the seconds of streaming."""
    mount.fails(f"read {latency} 0 {10**9}")
    shutil.rmtree(out, ignore_errors=True)
    asked = [] if reads == "auto" else ["--reads-in-flight", reads]
    models = sorted(str(folder) for folder in mount.place.iterdir())
    words = ["average", str(out), *models, "--progress", "off", *asked]
    subprocess.run([sys.executable, "-m", "merge_worker", *words], check=True, stdout=sys.stderr)
    timings = json.loads((out / "merge_manifest.json").read_text())["timings"]
    return float(timings["stream_s"]) - loading_s()


def loading_s() -> float:
    """Return the seconds that torch takes to load."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--params", type=float, default=2.7e8)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--latency", default="0.005,0.02", help="seconds, with commas between")
    parser.add_argument("--reads", default="1,4,16,auto")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = argparse.Namespace(
        work=args.work, params=args.params, models=args.models, dtype="bfloat16",
        shard_size=5e9, delta=bench_checkpoints.DELTA, one_tensor=False,
    )  # fmt: skip
    folders = bench_checkpoints.make(made)
    shutil.rmtree(args.work / "late", ignore_errors=True)
    mount = make_mount(args.work / "late", REQUEST_BYTES)
    seconds: dict[str, list[float]] = {}
    try:
        for folder in folders:
            shutil.copytree(folder, mount.store / folder.name)
        for _ in range(args.repeat):
            for latency in args.latency.split(","):
                for reads in args.reads.split(","):
                    took = streaming_s(mount, latency, reads, args.work / "out")
                    seconds.setdefault(f"{latency} s, {reads} in flight", []).append(took)
    finally:
        mount.fails()
        mount.unmount()
    rows = {
        name: {"stream_s": [round(s, 2) for s in several],
               "median_s": round(statistics.median(several), 2)}
        for name, several in seconds.items()
    }  # fmt: skip
    size = sum(f.stat().st_size for folder in folders for f in folder.glob("*.safetensors"))
    facts = {"machine": machine(), "params": args.params, "models": args.models}
    text = json.dumps({**facts, "input_bytes": size, "rows": rows}, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
