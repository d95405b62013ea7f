"""Two measurements of `search`: against a grid, and with four workers.

bench_search.py specialists FOLDER    two weights of trained specialists: 25 trials against 5 × 5
bench_search.py workers FOLDER        one worker against four on a real Slurm, started by the tests
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from merge_worker.search.results import AVERAGE, PARENT, TRIAL, read_results

ROOT = Path(__file__).resolve().parents[1]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("launcher", "worker", "tests"))
SPECIALISTS = """
recipe:
  merge_method: task_arithmetic
  base_model: base
  models:
  - {{model: adder, parameters: {{weight: 0.5}}}}
  - {{model: reverser, parameters: {{weight: 0.5}}}}
space:
  models.0.parameters.weight: {space}
  models.1.parameters.weight: {space}
evaluate: in-memory
function: loss.py:loss
direction: minimize
sampler: {sampler}
trials: 25
"""
LOSS = """
import random, sys
sys.path.insert(0, {scripts!r})
import torch
import demo_models as demo

tokenizer = demo.make_tokenizer()

@torch.no_grad()
def loss(model):
    values = []
    for name in ("adder", "reverser"):
        tokens = demo.batch(tokenizer, [demo.TASKS[name]], random.Random(99), 64)
        values.append(float(model(input_ids=tokens, labels=tokens).loss))
    return sum(values) / len(values)
"""
WORKERS = """
recipe:
  merge_method: linear
  models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]
space: {models.1.parameters.weight: [0, 1]}
evaluate: 'sleep 20; echo 0.$RANDOM'
sampler: random
trials: 12
"""


def run(folder: Path, *words: str) -> str:
    """Run a command of merge-launch or merge-worker in a folder; returns its output."""
    argv = [sys.executable, "-m", *words]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def specialists(folder: Path) -> None:
    """Print the best losses of a grid and of a search with as many merges."""
    scripts = str(ROOT / "scripts")
    sys.path.insert(0, scripts)
    import demo_models
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    demo_models.make([folder / name for name in ("base", "adder", "reverser", "counter")])
    (folder / "loss.py").write_text(LOSS.format(scripts=scripts))
    for name, space, sampler in (
        ("grid", "{low: 0, high: 1, step: 0.25}", "grid"),
        ("search", "[0, 1]", "auto"),
    ):
        (folder / f"{name}.yml").write_text(SPECIALISTS.format(space=space, sampler=sampler))
        run(folder, "merge_worker", "search", f"{name}.yml", name)
        results = read_results(folder / name)
        trials = [r for r in results if r.kind == TRIAL and r.score is not None]
        best = min(trials, key=lambda r: float(r.score or 0.0))
        print(f"{name:<7} {len(trials)} trials: {best.score:.5f}  {json.dumps(dict(best.values))}")
    for result in results:
        if result.kind in (PARENT, AVERAGE):
            print(f"        {result.name}: {result.score:.5f}")


def workers(folder: Path) -> None:
    """Print the seconds that one and four workers take for the same trials."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support import real_slurm
    from support.search_files import make_searches

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "slurm").mkdir()
    make_searches(folder)
    (folder / "s.yml").write_text(WORKERS)
    clusters = real_slurm.cluster(folder / "slurm")
    cluster = next(clusters)
    os.environ.update(cluster.variables)
    taken = {}
    for count in (1, 4):
        began = time.monotonic()
        words = ("slurm", "--workers", str(count), "--cpus", "1", "--mem", "700M", "--threads", "1")
        python = ("--python", sys.executable, "--out", f"out{count}")
        out = run(folder, "merge_launch", "search", "s.yml", *words, *python)
        for job_id in re.findall(r"^job +(\S+)$", out, re.MULTILINE):
            cluster.wait(job_id, "COMPLETED", timeout_s=1800)
        taken[count] = time.monotonic() - began
        candidates = len(read_results(folder / f"out{count}"))
        print(f"{count} workers: {taken[count]:.0f} s, {candidates} candidates")
    print(f"{taken[1] / taken[4]:.2f} ×")
    clusters.close()


if __name__ == "__main__":
    command, place = sys.argv[1:]
    {"specialists": specialists, "workers": workers}[command](Path(place).absolute())
