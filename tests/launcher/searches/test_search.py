"""`merge-launch search`: here, as arrays of workers, on Beaker; the table and the best recipe."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

SEARCH = """
recipe: base.yml
out: runs
space: {models.1.parameters.weight: [0, 1]}
evaluate: 'echo "{\\"loss\\": 0.5, \\"n\\": 3}"'
score: loss
direction: minimize
trials: 2
"""
BASE = """
merge_method: linear
models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]
"""
PYTHON = ("--python", sys.executable)
RESULTS = ("search", "s.yml", "results")


@pytest.fixture
def search(work: Path, models: list[Path]) -> Path:
    """Write the search s.yml; return the folder of its candidates."""
    (work / "s.yml").write_text(SEARCH)
    (work / "base.yml").write_text(BASE)
    return work / "runs"


@pytest.fixture
def runs(monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")


def rows(launch) -> list[dict]:
    return json.loads(launch(*RESULTS, "--json").out)


def test_here(launch_process, launch, search: Path, work: Path) -> None:
    done = launch_process("search", "s.yml", "local")
    assert done.code == 0, done.err
    assert "best       average: 0.5" in done.out
    found = rows(launch)
    names = ["parent-m1", "parent-m2", "average", "recipe", "t0000", "t0001"]
    assert [row["candidate"] for row in found] == names
    assert [row["state"] for row in found] == ["done"] * 2 + ["done, best"] + ["done"] * 3
    assert {row["score"] for row in found} == {0.5}
    table = launch(*RESULTS, "--sort", "weight", "--descending").out.splitlines()
    assert table[0].split() == ["CANDIDATE", "STATE", "SCORE", "WEIGHT"]
    assert table[1].split()[0] in ("t0000", "t0001")
    assert "WARNING: no candidate is better than the best parent" in table
    printed = list(csv.DictReader(io.StringIO(launch(*RESULTS, "--csv").out)))
    assert printed[-1]["folder"] == str(search / "t0001")
    unknown = launch(*RESULTS, "--sort", "wieght")
    assert unknown.code == 2 and "(did you mean 'weight'?)" in unknown.err


@pytest.mark.slow
def test_the_best_recipe(launch_process, launch, search: Path, work: Path) -> None:
    early = launch("search", "s.yml", "best")
    assert early.code == 2 and "no candidate has a score yet" in early.err
    nothing = launch(*RESULTS)
    assert nothing.code == 2 and "no candidates yet" in nothing.err
    score = SEARCH.replace('loss\\": 0.5', 'loss\\": $RANDOM').replace("trials: 2", "trials: 3")
    (work / "s.yml").write_text(score)
    assert launch_process("search", "s.yml", "local").code == 0
    best = min(
        (row for row in rows(launch) if row["candidate"][0] != "p"), key=lambda row: row["score"]
    )
    printed = launch("search", "s.yml", "best").out
    assert yaml.safe_load(printed)["models"][0]["model"] == "m1"
    done = launch("search", "s.yml", "best", "-o", "best.yml")
    assert done.out == f"{best['candidate']}: best.yml\n"
    assert (work / "best.yml").read_text() == printed == (search / "best.yml").read_text()
    assert launch_process("local", "best.yml", "again").code == 0
    (kept,) = search.glob("*/model/model.safetensors")
    assert (work / "again" / "model.safetensors").read_bytes() == kept.read_bytes()
    bad = launch("search", "s.yml", "best", "-o", "nowhere/best.yml")
    assert bad.code == 4 and "nowhere/best.yml: No such file" in bad.err


@pytest.mark.slow
def test_workers_as_one_array_of_slurm(launch, search: Path, fakes, runs, work: Path) -> None:
    done = launch("search", "s.yml", "slurm", "--workers", "3", *PYTHON)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == ["job     34_0", "job     34_1", "job     34_2"]
    assert [call.split()[0] for call in fakes.calls()].count("sbatch") == 1
    assert {row["candidate"] for row in rows(launch)} >= {"t0000", "t0001"}
    # The fake runs one after the other: the first does all, the others find it done.
    logs = sorted(path.name for path in (work / "runs.job").glob("*.log"))
    assert logs == ["w1-s.log", "w2-s.log", "w3-s.log"]
    assert "t0001  0.5" in (work / "runs.job" / "w1-s.log").read_text()
    assert launch("status", "34_2").out.startswith("34_2  done")
    # More workers later, with logs of their own.
    again = launch("search", "s.yml", "slurm", "--workers", "2", *PYTHON)
    assert again.code == 0, again.err
    assert (work / "runs.job" / "w5-s.log").exists()


@pytest.mark.slow
def test_one_worker_of_slurm(launch, search: Path, fakes, runs, work: Path) -> None:
    done = launch("search", "s.yml", "slurm", *PYTHON, "--time", "1:00:00", "--threads", "1")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "job     34"
    assert "table   merge-launch search s.yml results" in done.out
    assert len(rows(launch)) == 6
    text = (work / "runs.job" / "w1-s.sbatch").read_text()
    assert "--deadline=" in text and "--threads=1" in text


@pytest.mark.slow
def test_workers_as_one_array_of_pbs(launch, search: Path, fakes) -> None:
    done = launch("search", "s.yml", "pbs", "--workers", "2", *PYTHON)
    assert done.code == 0, done.err
    assert [call.split()[:3] for call in fakes.calls() if "qsub" in call] == [["qsub", "-J", "0-1"]]
    fakes.pbs("schedule")
    assert len(rows(launch)) == 6
    assert launch("status", "12[1].pbs-server").out.startswith("12[1].pbs-server  done")


@pytest.mark.slow
def test_workers_detached_here(launch_process, launch, search: Path, work: Path) -> None:
    refused = launch_process("search", "s.yml", "local", "--workers", "2")
    assert refused.code == 2 and "use --detach for several" in refused.err
    done = launch_process("search", "s.yml", "local", "--workers", "2", "--detach")
    assert done.code == 0, done.err
    ids = [line.split()[1] for line in done.out.splitlines() if line.startswith("job ")]
    assert len(ids) == 2
    for job_id in ids:
        assert launch_process("logs", "-f", job_id).code == 0
    assert all(row["state"].startswith("done") for row in rows(launch)) and len(rows(launch)) == 6


def test_replicas_of_beaker(launch, search: Path) -> None:
    words = ("--image", "ada/torch", "--weka", f"bucket:{search.parent}", "--dry-run")
    for flag in ("--workers", "--replicas"):
        done = launch("search", "s.yml", "beaker", flag, "3", *words)
        assert done.code == 0, done.err
        (task,) = yaml.safe_load(done.out)["tasks"]
        assert task["replicas"] == 3 and "propagateFailure" not in task
        script = task["arguments"][0]
        assert "--ranks" not in script and " search " in script
        assert "optuna~=5.0" in script
    differ = launch("search", "s.yml", "beaker", "--replicas", "2", "--workers", "3", *words)
    assert differ.code == 2 and "--workers and --replicas differ" in differ.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("slurm", "--then", "ls"), "--then: a search has 'evaluate'"),
        (("slurm", "--nodes", "2"), "--nodes: each worker of a search has one node"),
        (("slurm", "--overwrite"), "--overwrite: candidates are never replaced"),
        (("slurm", "--push", "a/b"), "--push: for one merge"),
        (("slurm", "--engine", "mergekit"), "--engine: candidates are merged by merge-worker"),
        (("slurm", "--workers", "0"), "--workers '0' must be at least 1"),
        (("slurm", "--follow"), "--follow: for one merge"),
    ],
)
def test_options_that_no_search_has(launch, search: Path, fakes, words, text: str) -> None:
    done = launch("search", "s.yml", *words)
    assert done.code == 2 and text in done.err
    assert fakes.calls() == [] and not search.exists()


def test_faults_before_anything_is_submitted(launch, search: Path, work: Path, fakes) -> None:
    (work / "s.yml").write_text(SEARCH + "tirals: 3\n")
    done = launch("search", "s.yml", "slurm")
    assert done.code == 2 and "s.yml:9: tirals: unknown key (did you mean 'trials'?)" in done.err
    (work / "s.yml").write_text(SEARCH)
    (work / "base.yml").write_text(BASE.replace("m2", "m9"))
    done = launch("search", "s.yml", "local")
    assert done.code == 3 and "m9" in done.err
    missing = launch("search", "nowhere.yml", "slurm")
    assert missing.code == 2 and "nowhere.yml: No such file" in missing.err
    assert fakes.calls() == []


@pytest.mark.slow
def test_a_job_carries_the_recipe(launch, search: Path, work: Path, fakes) -> None:
    """The file base.yml may change after the submission."""
    done = launch("search", "s.yml", "slurm", "--workers", "2", *PYTHON)
    assert done.code == 0, done.err
    (work / "base.yml").write_text("broken: [")
    script = work / "runs.job" / "w1-s.sbatch"
    subprocess.run(["bash", script], check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    assert (search / "best.yml").exists()
    assert load_file(next(search.glob("*/model/model.safetensors")))
