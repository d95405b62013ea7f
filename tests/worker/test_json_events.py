"""`--progress json`: every line on stderr is one event, from begin to end, whatever happens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.checkpoint_factory import write_checkpoint
from support.recipes import run

Capture = pytest.CaptureFixture[str]


def events(capsys: Capture, *words: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    code = run(*words, "--progress", "json")
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert found[-1]["event"] == "end" and found[-1]["exit_code"] == code
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [each["event"] for each in found if each["event"] != "progress"]


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        write_checkpoint(tmp_path / name, {"w": torch.full((64, 64), value)})
    return [tmp_path / name for name in "abc"]


def test_begin_warning_end(models: list[Path], tmp_path: Path, capsys: Capture) -> None:
    found = events(capsys, "average", tmp_path / "out", models[0], models[2])
    assert kinds(found) == ["begin", "warning", "warning", "end"]
    begin = {"event": "begin", "title": "out", "bytes_total": 16384, "bytes_done": 0}
    assert found[0] == {**begin, "rank": 0, "world": 1}
    assert found[1]["text"].startswith(f"{models[2]} is identical to {models[0]} in all of 4096")
    assert found[-1]["error"] == "" and found[-1]["elapsed_s"] > 0


def test_an_error_is_the_end(models: list[Path], tmp_path: Path, capsys: Capture) -> None:
    found = events(capsys, "average", tmp_path / "out", models[0], tmp_path / "none")
    assert kinds(found) == ["end"] and found[0]["exit_code"] == 3
    assert found[0]["error"].startswith(f"{tmp_path}/none: no such folder")


def test_stopped_and_resumed(models: list[Path], tmp_path: Path, capsys: Capture) -> None:
    words = ["average", tmp_path / "out", *models[:2]]
    stopped = events(capsys, *words, "--deadline", "0s")
    assert kinds(stopped) == ["begin", "end"] and stopped[-1]["exit_code"] == 75
    assert "run the same command to resume" in stopped[-1]["error"]
    assert kinds(events(capsys, *words)) == ["begin", "end"]


def test_warnings_of_a_recipe_and_notes(
    models: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    recipe = tmp_path / "r.yml"
    listed = [{"model": str(m), "parameters": {"weight": 1}} for m in models[:2]]
    recipe.write_text(json.dumps({"merge_method": "linear", "models": listed, "nonsense": 1}))
    found = events(capsys, "merge", recipe, tmp_path / "out", "--lazy-unpickle")
    assert kinds(found) == ["note", "warning", "begin", "end"]
    assert found[1]["text"] == f"{recipe}:1: nonsense: nothing reads this key"
