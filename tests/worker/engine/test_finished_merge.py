"""A finished merge again: at once, and without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.recipes import average, digest, one_tensor_models, run

ROOT = Path(__file__).resolve().parents[3]
MOST_S = 3.0
CODE = (
    "import sys\nfrom merge_worker.cli import main\ncode = main(sys.argv[1:])\n"
    "heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    "sys.exit(f'loads {heavy}' if heavy else code)\n"
)


def again(*words: object) -> tuple[float, str]:
    """Processor seconds of the command in a new interpreter, and what it printed."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    after = os.times()
    seconds = sum(after[2:4]) - sum(before[2:4])
    assert done.returncode == 0, done.stderr
    return seconds, done.stdout


@pytest.fixture
def big(tmp_path: Path) -> list[Path]:
    return one_tensor_models(tmp_path, 2_600_000)


def test_an_average(tmp_path: Path, big: list[Path]) -> None:
    assert average(tmp_path / "out", big, "--sha256") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    rest = tmp_path / "out" / ".merge-partial-0a1b2c3d"
    rest.mkdir()  # as of a run that was killed with its last breath
    (rest / "key.json").touch()
    seconds, told = again("average", tmp_path / "out", *big, "--sha256")
    assert told.endswith("this merge is already there; nothing to do\n")
    assert seconds < MOST_S
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_several_recipes(tmp_path: Path, big: list[Path]) -> None:
    words: list[object] = ["merge", "--progress", "off"]
    for weight in (1, 2):
        recipe = tmp_path / f"{weight}.yml"
        recipe.write_text(
            f"merge_method: task_arithmetic\nbase_model: {big[0]}\n"
            f"models: [{{model: {big[1]}, parameters: {{weight: {weight}}}}}]\n"
        )
        words += ["-a", recipe, tmp_path / f"out{weight}"]
    assert run(*words) == 0
    before = [digest(tmp_path / f"out{weight}") for weight in (1, 2)]
    seconds, told = again(*words)
    assert told.count("nothing to do") == 2 and seconds < MOST_S
    assert before == [digest(tmp_path / f"out{weight}") for weight in (1, 2)]
