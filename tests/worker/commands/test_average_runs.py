"""Averages of checkpoints of one run: what is picked, what is fixed, windows in one pass."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge_worker.checkpoint.reader import Files
from merge_worker.engine import sampling
from merge_worker.recipe.schedules import schedule_weights
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import average, run

STEPS = range(1000, 7000, 1000)


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """A run whose checkpoint of step i000 has 1 in the place i - 1."""
    for number, step in enumerate(STEPS):
        write_checkpoint(tmp_path / "run" / f"step{step}", {"w": torch.eye(6)[number]})
    return tmp_path / "run"


def add(steps: Path, step: int) -> None:
    shutil.copytree(steps / "step6000", steps / f"step{step}")


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "merge_manifest.json").read_text())
    return found


def test_order_is_that_of_the_steps(tmp_path: Path, steps: Path) -> None:
    assert average(tmp_path / "out", [steps], "--last", "4", "--schedule", "ema:0.5") == 0
    want = [0, 0, *schedule_weights("ema:0.5", 4)]
    assert read_tensors(tmp_path / "out")["w"].tolist() == pytest.approx(want)


def test_the_manifest_has_the_checkpoints_and_the_request(tmp_path: Path, steps: Path) -> None:
    (steps / "step7000").mkdir()
    options = ["--from", "2000", "--to", "9000", "--every", "2000", "--last", "2", "--min", "2"]
    assert average(tmp_path / "out", [steps], *options) == 0
    found = manifest(tmp_path / "out")
    assert found["recipe"]["models"] == ["step4000", "step6000"]
    recipe = yaml.safe_load(found["recipe"]["text"])
    numbers = {"from": 2000, "to": 9000, "every": 2000, "last": 2, "min": 2}
    assert recipe["picked_from"] == {"run": "run", **numbers}
    assert str(tmp_path) not in json.dumps(found)
    # The manifest repeats the merge with the checkpoints that it names.
    recipe = tmp_path / "out" / "mergekit_config.yml"
    add(steps, 8000)
    assert run("merge", recipe, tmp_path / "again") == 0
    assert manifest(tmp_path / "again")["key"] == found["key"]


def test_a_recipe_asks_for_a_run(tmp_path: Path, steps: Path) -> None:
    (tmp_path / "r.yml").write_text(
        "merge_method: linear\nmodels: {run: run, steps: [1000, 3000], schedule: minus-sqrt}\n"
    )
    assert run("merge", tmp_path / "r.yml", tmp_path / "out", "--relative-to", tmp_path) == 0
    first, last = schedule_weights("minus-sqrt", 2)
    want = [first, 0, last, 0, 0, 0]
    assert read_tensors(tmp_path / "out")["w"].tolist() == pytest.approx(want)


def test_one_document_of_several_asks_for_a_run(tmp_path: Path, steps: Path) -> None:
    (tmp_path / "r.yml").write_text(
        f"name: soup\nmerge_method: linear\nmodels: {{run: {steps}, last: 2}}\n---\n"
        f"merge_method: linear\nmodels: [{{model: soup, parameters: {{weight: 1}}}}, "
        f"{{model: {steps}/step1000, parameters: {{weight: 1}}}}]\n"
    )
    assert run("merge", tmp_path / "r.yml", tmp_path / "out") == 0
    assert read_tensors(tmp_path / "out")["w"].tolist() == [0.5, 0, 0, 0, 0.25, 0.25]


def test_a_method_without_weights_and_a_base(tmp_path: Path, steps: Path) -> None:
    options = ["--last", "3", "--method", "model_stock", "--base-model", steps / "step1000"]
    assert average(tmp_path / "out", [steps], *options) == 0
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert recipe["models"] == [{"model": f"{steps}/step{n}000"} for n in (4, 5, 6)]


def test_a_finished_merge_stays_although_the_run_goes_on(
    tmp_path: Path, steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert average(out, [steps], "--last", "2") == 0
    add(steps, 7000)
    assert average(out, [steps], "--last", "2") == 0
    said = capsys.readouterr()
    assert "already there" in said.out
    assert "goes on with the checkpoints that it began with, without step7000" in said.err
    assert manifest(out)["recipe"]["models"] == ["step5000", "step6000"]
    assert average(out, [steps], "--last", "2", "--overwrite") == 0
    assert manifest(out)["recipe"]["models"] == ["step6000", "step7000"]


def test_a_stopped_merge_goes_on_with_its_checkpoints(
    tmp_path: Path, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("merge_worker.engine.run._finish", lambda *_: None)
    assert average(out, [steps], "--last", "2") == 0
    assert not (out / "merge_manifest.json").exists()
    monkeypatch.undo()
    add(steps, 7000)
    (steps / "step8000").mkdir()
    assert average(out, [steps], "--last", "2") == 0
    assert manifest(out)["recipe"]["models"] == ["step5000", "step6000"]
    assert average(out, [steps], "--last", "3") == 4  # another request is another merge


def test_a_stopped_merge_can_begin_anew(
    tmp_path: Path, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merge_worker.engine.run._finish", lambda *_: None)
    assert average(tmp_path / "out", [steps], "--last", "2") == 0
    monkeypatch.undo()
    add(steps, 7000)
    assert average(tmp_path / "out", [steps], "--last", "2", "--no-resume") == 0
    assert manifest(tmp_path / "out")["recipe"]["models"] == ["step6000", "step7000"]


def test_windows_and_schedules_are_one_pass(
    tmp_path: Path, steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    read = Files.read

    def noted(self: Files, path: str, offset: int, *rest: Any) -> None:
        seen.append((path, offset))
        read(self, path, offset, *rest)

    monkeypatch.setattr(Files, "read", noted)
    # Samples are read once more.
    monkeypatch.setattr(sampling.InputSample, "sampled", lambda self: iter(()))
    options = ["--windows", "2,3,5", "--schedule", "minus-sqrt,ema:0.5"]
    assert average(tmp_path / "out", [steps], *options) == 0
    assert len({path for path, _ in seen}) == 5  # the oldest is in no window
    assert len(seen) == len(set(seen))
    for window in (2, 3, 5):
        for schedule in ("minus-sqrt", "ema:0.5"):
            out = tmp_path / "out" / f"last{window}-{schedule.replace(':', '-')}"
            want = [0.0] * (6 - window) + list(schedule_weights(schedule, window))
            assert read_tensors(out)["w"].tolist() == pytest.approx(want, abs=1e-7)
            assert run("verify", out) == 0
            assert (out / "README.md").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"last{n}-{s}" for n in (2, 3, 5) for s in ("minus-sqrt", "ema-0.5")
    )


def test_several_schedules_of_models_that_are_named(tmp_path: Path, steps: Path) -> None:
    models = [steps / "step1000", steps / "step2000"]
    assert average(tmp_path / "out", models, "--schedule", "uniform,last-k:1") == 0
    assert read_tensors(tmp_path / "out" / "uniform")["w"].tolist()[:2] == [0.5, 0.5]
    assert read_tensors(tmp_path / "out" / "last-k-1")["w"].tolist()[:2] == [0, 1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--windows", "2,9"], 3, "6 checkpoints (step 1000 … 6000) of last 9; the least is 9"),
        (["--windows", "2", "--last", "3"], 2, "--last conflicts with --windows"),
        (["--last", "0"], 2, "--last: expected a whole number, got 0"),
        (["--last", "x"], 2, "--last: 'x' is not a whole number"),
        (["--steps", "1000", "--to", "3000"], 2, "--to: conflicts with 'steps'"),
        (["--last", "2", "--weights", "1,2"], 2, "--schedule weighs them"),
        (["--last", "2", "--schedule", "emma"], 2, "no schedule 'emma' (did you mean 'ema'?)"),
        (["--last", "3", "--method", "nearswap", "--param", "t=0.5"], 2, "needs a base"),
    ],
)
def test_faults(
    tmp_path: Path,
    steps: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    message: str,
) -> None:
    assert average(tmp_path / "out", [steps], *options) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_models_with_an_option_on_steps(
    tmp_path: Path, steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [steps / "step1000", steps / "step2000"]
    assert average(tmp_path / "out", models, "--last", "2") == 2
    assert "--last: 2 models are given; give one, the folder" in capsys.readouterr().err


def test_faults_of_a_recipe_have_lines(
    tmp_path: Path, steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text("merge_method: linear\nmodels:\n  run: run\n  lasst: 3\n  min: many\n")
    assert run("check", recipe) == 2
    said = capsys.readouterr().err
    assert "r.yml:4: models.lasst: nothing reads this key (did you mean 'last'?)" in said
    assert "r.yml:5: models.min: expected a whole number, got 'many'" in said


def test_check_says_what_is_picked(
    tmp_path: Path, steps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(f"merge_method: linear\nmodels: {{run: {steps}, last: 4}}\n")
    assert run("check", recipe) == 0
    line = "picked     step 3000 … 6000, 4 of 6 checkpoints, 1000 apart\n"
    assert line in capsys.readouterr().out
