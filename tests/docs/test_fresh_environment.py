"""A login node's install, in a fresh environment: small, and words for what is missing.

The environment is made from a wheel of the checkout, with the pins of scripts/constraints.txt and
the index that pip is configured for; without one the tests are skipped.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.demo_models import save_demo_models
from support.doc_examples import ROOT

LARGEST_LAUNCHER_BYTES = 30 << 20

pytestmark = pytest.mark.slow


def pip(python: str | Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [python, "-m", "pip", "--disable-pip-version-check", "-q", *words]
    return subprocess.run([*map(str, argv)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = pip(sys.executable, "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT)
    assert done.returncode == 0, done.stderr
    reached = pip(sys.executable, "download", "--no-deps", "-d", folder / "seen", "markupsafe")
    if reached.returncode:
        pytest.skip(f"no package index can be reached: {reached.stderr.splitlines()[-1]}")
    (built,) = folder.glob("merge_launch-*.whl")
    return built


@pytest.fixture
def install(wheel: Path, tmp_path: Path) -> Callable[[], None]:
    """Install the wheel into an environment in `venv`."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)

    def install() -> None:
        python = tmp_path / "venv" / "bin" / "python"
        done = pip(python, "install", "-c", ROOT / "scripts" / "constraints.txt", wheel)
        assert done.returncode == 0, done.stderr

    return install


def run(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run([*map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_launcher_alone_is_small(
    install: Callable[[], None], work: Path, tmp_path: Path
) -> None:
    """A login node: no torch, little disk, and words instead of a traceback."""
    (site,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    before = {entry.name for entry in site.iterdir()}
    install()
    new = [entry for entry in site.iterdir() if entry.name not in before]
    files = {path for entry in new for path in (entry, *entry.rglob("*")) if path.is_file()}
    assert sum(path.stat().st_size for path in files) < LARGEST_LAUNCHER_BYTES
    program = tmp_path / "venv" / "bin" / "merge-launch"
    save_demo_models(work)
    for words in (
        ["compare", "adder", "reverser", "--plot", "x.png"],
        ["compare", "adder", "reverser"],
        ["perplexity", "adder", "--data", "heldout.txt"],
        ["try", "adder"],
    ):
        done = run(program, *words, cwd=work)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert re.search(r"(torch|matplotlib) is missing in .*\n  .*pip install", done.stderr)
    assert run(program, "check", "out", "adder", "reverser", cwd=work).returncode == 0
