"""Averages of checkpoints by schedule, from the command and from a recipe."""

import json
from pathlib import Path

import pytest
import torch

from merge_worker.errors import UsageError
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from merge_worker.recipe.schedules import schedule_weights
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import average


@pytest.fixture
def steps(tmp_path: Path) -> list[Path]:
    """Checkpoints of a run, oldest first: 1 in the i-th place of the i-th."""
    return [
        write_checkpoint(tmp_path / f"step{i}", {"w": torch.eye(4)[i], "n": torch.ones(2)})
        for i in range(4)
    ]


@pytest.mark.parametrize(
    "schedule",
    ["uniform", "linear", "minus-sqrt", "ema", "ema:0.5", "last-k:3", "cosine", "inverse__reverse"],
)
def test_weights_are_those_of_the_schedule(
    tmp_path: Path, steps: list[Path], schedule: str
) -> None:
    assert average(tmp_path / "out", steps, "--schedule", schedule) == 0
    got = read_tensors(tmp_path / "out")
    assert got["w"].tolist() == pytest.approx(schedule_weights(schedule, 4), abs=1e-7)
    assert got["n"].tolist() == [1, 1]


def test_only_what_weighs_is_read(tmp_path: Path, steps: list[Path]) -> None:
    (steps[0] / "model.safetensors").write_bytes(b"broken")
    assert average(tmp_path / "out", steps, "--schedule", "last-k:2") == 0


def test_on_deltas_of_a_base(tmp_path: Path, steps: list[Path]) -> None:
    options = ["--schedule", "minus-sqrt", "--method", "task_arithmetic", "--base-model", steps[0]]
    assert average(tmp_path / "out", steps, *options) == 0
    want = torch.zeros(4)
    want[1:] = torch.tensor(schedule_weights("minus-sqrt", 3))
    assert torch.allclose(read_tensors(tmp_path / "out")["w"], want)


def test_faults(tmp_path: Path, steps: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert average(tmp_path / "out", steps, "--schedule", "ema", "--weights", "1,1,1,1") == 2
    assert "--schedule and --weights exclude each other" in capsys.readouterr().err
    assert average(tmp_path / "out", steps, "--schedule", "last-k:9") == 2
    assert "from 1 to 4" in capsys.readouterr().err
    assert average(tmp_path / "out", steps, "--schedule", "ema", "--method", "slerp") == 2
    assert "takes no weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def plan(steps: list[Path], schedule: object, weight: float | None = None) -> Plan:
    entry = {} if weight is None else {"parameters": {"weight": weight}}
    text = {
        "merge_method": "linear",
        "models": [{"model": str(step), **entry} for step in steps],
        "parameters": {"schedule": schedule},
    }
    return make_plan(parse(json.dumps(text)))


def test_in_a_recipe(steps: list[Path]) -> None:
    for step in plan(steps, "ema:0.5").steps:
        assert step.task and step.task.values["weight"] == schedule_weights("ema:0.5", 4)
    by_name = plan(steps, [{"filter": "w", "value": "minus-sqrt"}, {"value": "uniform"}])
    weights = {s.name: s.task.values["weight"] for s in by_name.steps if s.task}
    assert weights == {"w": schedule_weights("minus-sqrt", 4), "n": schedule_weights("uniform", 4)}


def test_faults_in_a_recipe(steps: list[Path]) -> None:
    with pytest.raises(UsageError, match="weight beside a schedule"):
        plan(steps, "ema", weight=1.0)
    with pytest.raises(UsageError, match="no schedule 'sine'"):
        plan(steps, "sine")
