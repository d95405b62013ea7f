"""Headers and recipes that nobody meant well: an answer in words, soon, in bounded memory.

With --slow 200,000 of them (`fuzz.py` makes and reads them).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def batch(kind: str, seed: int, count: int) -> None:
    words = [sys.executable, ROOT / "tests" / "fuzz.py", kind, str(seed), str(count)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(rf"{count} {kind}, (\d+) refused\n", done.stdout)
    assert found and 0.3 * count < int(found[1]) < count, "both kinds come up"


@pytest.mark.parametrize("kind", ["headers", "recipes"])
def test_some(kind: str) -> None:
    batch(kind, 0, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(("kind", "count"), [("headers", 40_000), ("recipes", 12_500)])
def test_two_hundred_thousand(kind: str, count: int, seed: int) -> None:
    batch(kind, seed, count)
