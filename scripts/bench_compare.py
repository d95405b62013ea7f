"""Times `compare` beside a `linear` merge of the same models, in turn: which part is reading?

    scripts/bench_compare.py BASE MODEL MODEL… [--rounds 3]

scripts/bench_checkpoints.py makes models. Processor seconds stay meaningful on a busy machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def timed(*words: str) -> tuple[float, float]:
    """Return the wall and processor seconds of a run of merge-worker."""
    before, began = os.times(), time.monotonic()
    command = [sys.executable, "-m", "merge_worker", *words, "--progress", "off"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - began, os.times()
    used = after.children_user + after.children_system
    return wall, used - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    base, *models = arguments.models
    size = sum(f.stat().st_size for m in arguments.models for f in Path(m).glob("*.safetensors"))
    print(f"{len(arguments.models)} models, {size / 2**30:.2f} GiB, {os.cpu_count()} processors")
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=Path(base).resolve().parent) as folder:
            merge = timed("average", f"{folder}/out", *arguments.models)
        compare = timed("compare", *models, "--base", base)
        print(
            f"linear {merge[0]:.1f} s ({merge[1]:.1f} s of processors), "
            f"compare {compare[0]:.1f} s ({compare[1]:.1f}): "
            f"{compare[0] / merge[0]:.1f} and {compare[1] / merge[1]:.1f} times"
        )


if __name__ == "__main__":
    main()
