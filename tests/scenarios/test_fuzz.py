"""Hostile inputs: a readable error, soon, in bounded memory.

`fuzz_runner.py` makes and reads them, hundreds of thousands with --slow. `scripts/fuzz` looks for
more with atheris, which is also tried here if it is installed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.fuzz_cases import MAKERS
from support.paths import ROOT, SOURCES

SUPPORT = ROOT / "tests" / "support"
COUNTS = {"headers": 40_000, "recipes": 12_500, "configs": 1_000, "patterns": 1_000}
"""Of a slow test; there are four of each. Fewer where each is planned as a merge."""


def batch(kind: str, seed: int, count: int) -> None:
    words = [
        sys.executable,
        SUPPORT / "fuzz_runner.py",
        kind,
        str(seed),
        str(count),
    ]
    env = {**os.environ, "PYTHONPATH": SOURCES, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.fullmatch(rf"{count} {kind}, (\d+) refused\n", done.stdout)
    assert match
    if kind not in ("cards", "locks"):  # whose answers are no licence, and no owner
        assert 0.3 * count < int(match[1]) < count, "both kinds come up"


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_some(kind: str) -> None:
    batch(kind, 0, min(1000, COUNTS.get(kind, 4_000) // 10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("kind", MAKERS)
def test_hundreds_of_thousands(kind: str, seed: int) -> None:
    batch(kind, seed, COUNTS.get(kind, 4_000))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_guided_by_coverage(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (pip install atheris)")
    words = [
        sys.executable,
        SUPPORT / "fuzz_guided.py",
        kind,
        "1",
        "2000",
        tmp_path,
    ]
    env = {**os.environ, "PYTHONPATH": SOURCES, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.glob("*-found-*"))
    reached = re.search(r"DONE +cov: (\d+)", done.stderr)
    assert reached and int(reached[1]) > 30, "the worker's code is followed"
