"""Checkpoints of one run: picked here if the run is here, else by the job."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_launch import backends
from merge_launch.submission.prepare import read_request
from support.launcher_fixtures import model


@pytest.fixture
def steps(work: Path) -> Path:
    for step in (900, 1000, 1100):
        model(work / "run" / f"step{step}", step)
    (work / "run" / "step1200").mkdir()
    return work / "run"


def recipe(backend: str, *words: object, **given: str) -> dict[str, Any]:
    """Return the recipe that a job carries."""
    _, (merge,) = read_request(backends.get(backend), [str(word) for word in words], given)
    text: dict[str, Any] = yaml.safe_load(merge.text)
    return text


def test_check_shows_what_is_picked(launch: Callable[..., Any], steps: Path) -> None:
    done = launch("check", "out", steps, "--last", "2")
    assert done.code == 0
    assert "picked     step 1000 … 1100, 2 of 4 checkpoints, 100 apart" in done.out
    assert "step1200 is left out: no weights yet" in done.out


def test_check_of_windows_shows_each(launch: Callable[..., Any], steps: Path) -> None:
    done = launch("check", "out", steps, "--windows", "2,3")
    assert done.code == 0
    assert "out/last2\nmethod" in done.out and "out/last3\nmethod" in done.out


def test_the_job_names_the_checkpoints(launch: Callable[..., Any], steps: Path) -> None:
    carried = recipe("slurm", "out", steps, last="2", schedule="uniform")
    assert [entry["model"] for entry in carried["models"]] == [
        f"{steps}/step1000",
        f"{steps}/step1100",
    ]
    assert carried["picked_from"] == {"run": str(steps), "last": 2, "schedule": "uniform"}
    done = launch("render", "slurm", "out", steps, "--last", "2")
    assert "step1200 is left out: no weights yet" in done.err


def test_a_run_that_is_only_on_the_node_is_picked_there(work: Path) -> None:
    words = ["/weka/ai2/out", "/weka/ai2/run"]
    carried = recipe("beaker", *words, last="8", min="5", weka="ai2:/weka/ai2")
    assert carried["models"] == {"run": "/weka/ai2/run", "last": 8, "min": 5}


def test_hub_revisions_are_picked_by_the_job(work: Path) -> None:
    carried = recipe("slurm", "out", "org/name@stage1-step*", last="4")
    assert carried["models"] == {"run": "org/name@stage1-step*", "last": 4}


def test_a_recipe_asks_for_a_run(steps: Path, work: Path) -> None:
    (work / "r.yml").write_text("merge_method: linear\nmodels: {run: run, last: 2}\n")
    carried = recipe("slurm", "r.yml", "out")
    assert [entry["model"] for entry in carried["models"]] == ["run/step1000", "run/step1100"]


def test_several_windows_are_one_job(launch: Callable[..., Any], steps: Path) -> None:
    done = launch("render", "pbs", "out", steps, "--windows", "2,3", "--schedule", "uniform,ema")
    assert done.code == 0
    outs = [f"out/last{n}-{s}" for n in (2, 3) for s in ("uniform", "ema")]
    assert all(out in done.out for out in outs)
    assert "recipe-4.yml" in done.out
    refused = launch("render", "pbs", "out", steps, "--windows", "2,3", "--then", "ls")
    assert (refused.code, "--then: runs in one OUT" in refused.err) == (2, True)


def test_one_model_alone_is_told_how(launch: Callable[..., Any], steps: Path) -> None:
    done = launch("check", "out", steps)
    assert done.code == 2
    assert "of a folder of checkpoints, --last 8 takes the newest" in done.err


def test_local_merges_windows_and_goes_on_with_its_checkpoints(
    launch_process: Callable[..., Any], steps: Path, work: Path
) -> None:
    words = ["local", work / "out", steps, "--windows", "2,3", "--schedule", "uniform"]
    done = launch_process(*words)
    assert done.code == 0, done.err
    (steps / "step1200").rmdir()
    shutil.copytree(steps / "step1100", steps / "step1300")
    again = launch_process(*words)
    assert again.out.count("already there") == 2
    assert "without step1300; --no-resume or --overwrite picks anew" in again.err
