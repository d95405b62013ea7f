"""README and docs/contributing.md: methods, the example of one, links and options are real."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge_worker import methods

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_methods_in_the_table_exist_and_are_counted() -> None:
    listed = re.findall(r"^\| `(\w+)` \| ", README, re.MULTILINE)
    assert len(listed) == 6 and set(listed) <= set(methods.names())
    assert f"There are {len(methods.names())} methods" in README


@pytest.fixture
def example() -> str:
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    found = re.search(r"## Add a merge method.*?```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_of_a_method_works_when_its_file_is_added(example: str, tmp_path: Path) -> None:
    package = tmp_path / "merge_worker"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "worker" / "merge_worker", package, ignore=ignore)
    (package / "methods" / "scaled_sum.py").write_text(example, encoding="utf-8")
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        tensors = {"x": torch.full((3,), value)}
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "recipe.yml").write_text(
        "merge_method: scaled_sum\nparameters: {scale: 2}\nmodels:\n"
        "- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 3}}\n",
        encoding="utf-8",
    )
    words = ["merge", "recipe.yml", "out", "--progress", "off"]
    command = [sys.executable, "-m", "merge_worker", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "out" / "model.safetensors")["x"].tolist() == [14.0] * 3


def test_the_recipe_in_it_is_understood(tmp_path: Path) -> None:
    from merge_worker.recipe import parse

    found = re.search(r"```yaml recipe.yml\n(.*?)```", README, re.DOTALL)
    assert found is not None
    assert parse(found[1]).warnings == ()


def test_pages_that_it_names_exist() -> None:
    names = re.findall(r"\]\(([^)#:]+)", README)
    assert len(names) > 8
    assert [name for name in names if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("line", re.findall(r"`(merge-(?:launch|worker) [^`]+)`", README))
def test_commands_in_the_text_name_what_exists(line: str) -> None:
    """Check options named in running text; test_pages.py runs the blocks."""
    program, command = line.split()[:2]
    package = program.replace("-", "_")
    flags = re.findall(r"--[a-z-]+", line)
    help_text = subprocess.run(
        [sys.executable, "-m", package, command, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [flag for flag in flags if flag not in help_text] == []
