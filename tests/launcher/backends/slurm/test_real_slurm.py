"""The whole way on a real Slurm: submission, following, walltime, preemption, arrays, ranks."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoint_factory import write_checkpoint
from support.launcher_fixtures import SWEEP
from support.real_slurm import until

pytestmark = pytest.mark.slow

SHARDS = "*.safetensors"
# Reads wait until a test lets them go on, so that a tiny merge takes as long as a large one.
SLOW = """
import os, pathlib, time
read = os.preadv
def preadv(*words):
    if not pathlib.Path(os.environ["GO"]).exists():
        time.sleep(0.4)
        with open(os.environ["GO"] + ".reads", "a") as reads:
            reads.write(".")
    return read(*words)
os.preadv = preadv
"""


class Slow(NamedTuple):
    """`python` runs the worker slowly until the file `go` is there."""

    python: str
    go: Path
    models: list[Path]


@pytest.fixture
def slow(work: Path) -> Slow:
    models = []
    for number in (1, 2):
        tensors = {f"layers.{n}.weight": torch.full((64, 1024), number + n / 8) for n in range(80)}
        models.append(write_checkpoint(work / f"large{number}", tensors))
    (work / "slow").mkdir()
    (work / "slow" / "sitecustomize.py").write_text(SLOW)
    program, go = work / "slow" / "python", work / "slow" / "go"
    program.write_text(
        f'#!/bin/bash\nexport GO={go} PYTHONPATH={program.parent}\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return Slow(str(program), go, models)


OPTIONS = ("--mem", "700M", "--cpus", "1", "--threads", "1", "--progress", "plain")


def submitted(done) -> str:
    assert done.code == 0, done.err
    match = re.search(r"^job +(\S+)$", done.out, re.MULTILINE)
    assert match is not None, done.out
    return match[1]


def contents(folder: Path) -> dict[str, bytes]:
    shards = {path.name: path.read_bytes() for path in folder.glob(SHARDS)}
    assert shards
    return shards


@pytest.fixture
def undisturbed(launch, slow: Slow, work: Path) -> Callable[[], dict[str, bytes]]:
    """Merge the slow models with one process, undisturbed."""

    def merge() -> dict[str, bytes]:
        assert launch("local", "alone", *slow.models, "--progress", "off").code == 0
        return contents(work / "alone")

    return merge


def begun(slow: Slow) -> None:
    """Until a tenth of the merge is done."""
    reads = Path(f"{slow.go}.reads")
    until(lambda: reads.exists() and reads.stat().st_size > 20, "some reads")


def test_submit_and_follow(slurm, launch, models, work: Path) -> None:
    done = launch("slurm", "out", *models, *OPTIONS, "--python", sys.executable, "--follow")
    job_id = submitted(done)
    assert "2 tensors merged" in done.out
    assert launch("status", job_id).out.startswith(f"{job_id}  done  (")
    assert load_file(work / "out" / "model.safetensors")["norm"].tolist() == [20, 20, 20]
    (row,) = [each for each in json.loads(launch("jobs", "--json").out) if each["job"] == job_id]
    assert (row["state"], row["exit_code"]) == ("done", 0)


def test_a_folder_with_other_letters(slurm, launch, models, work: Path) -> None:
    out = work / "Jörg's (übung), #1 & $x; 漢字" / "out"
    job_id = submitted(launch("slurm", out, *models, *OPTIONS, "--python", sys.executable))
    slurm.wait(job_id, "COMPLETED")
    assert (out / "merge_manifest.json").exists()
    assert "2 tensors merged" in launch("logs", job_id).out
    assert launch("status", job_id).out.startswith(f"{job_id}  done  (")


def test_a_job_that_fails(slurm, launch, models, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / ".merge-partial").touch()
    words = ("slurm", "out", *models, *OPTIONS, "--python", sys.executable)
    job_id = submitted(launch(*words, "--then", "touch never"))
    slurm.wait(job_id, "FAILED")
    assert f"{job_id}  failed  (exit code 4)" in launch("status", job_id).out
    assert "The script ended with code 4." in launch("why", job_id).out
    # What was to follow does not wait for ever.
    later = str(int(job_id) + 1)
    slurm.wait(later, "CANCELLED")
    assert "Can never run: the job it depends on did not succeed." in launch("why", later).out


def test_what_follows_runs_after_the_merge(slurm, launch, models, work: Path) -> None:
    words = ("slurm", "out", *models, *OPTIONS, "--python", sys.executable)
    job_id = submitted(launch(*words, "--then", "pwd; ls model.safetensors"))
    later = str(int(job_id) + 1)
    slurm.wait(later, "COMPLETED")
    assert slurm.field(job_id, "JobState") == "COMPLETED"
    text = (work / "out.job" / "out-then.log").read_text()
    assert text.endswith(f"{work}/out\nmodel.safetensors\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--cpus", "99"), "exceeds the resources or limits of this partition"),
        (("--time", "10:00:00"), "exceeds the limit of this partition"),
        (("--nodes", "2", "--cpus", "2"), None),
    ],
)
def test_why_it_waits(slurm, launch, models, words, sentence: str | None) -> None:
    blocker = submitted(launch("slurm", "first", *models, "--directive=--hold", *OPTIONS))
    assert "On hold" in launch("why", blocker).out
    done = launch("slurm", "out", *models, "--mem", "700M", *words)
    if done.code == 6:
        # Some requests are refused at once, in sbatch's own words.
        assert "sbatch failed" in done.err
        return
    job_id = submitted(done)
    if sentence is not None:
        # At first Slurm only says that it is too much for the partition.
        until(lambda: sentence in launch("why", job_id).out, f"'{sentence}'")
    for job in (blocker, job_id):
        assert launch("cancel", job).code == 0
        slurm.wait(job, "CANCELLED")


def test_cancel_and_retry(slurm, launch, slow: Slow, work: Path, undisturbed) -> None:
    words = ("slurm", "out", *slow.models, *OPTIONS, "--python", slow.python)
    job_id = submitted(launch(*words))
    begun(slow)
    assert launch("cancel", job_id).code == 0
    slurm.wait(job_id, "CANCELLED")
    assert f"{job_id}  cancelled" in launch("status", job_id).out
    assert slurm.field(job_id, "Restarts") == "0"
    slow.go.touch()
    again = submitted(launch("retry", job_id))
    slurm.wait(again, "COMPLETED")
    assert contents(work / "out") == undisturbed()


@pytest.mark.parametrize("how", ["walltime", "warning", "preemption"])
def test_stopped_and_continued(
    how: str, slurm, launch, slow: Slow, work: Path, undisturbed
) -> None:
    """75, back into the queue by itself, and in the end the bytes of an undisturbed run."""
    limit = ("--time", "1" if how == "walltime" else "30")
    words = ("slurm", "out", *slow.models, *OPTIONS, *limit, "--python", slow.python)
    job_id = submitted(launch(*words))
    log = work / "out.job" / "out.log"
    begun(slow)
    if how == "warning":
        slurm.ask("scancel", "--batch", "--signal=USR1", job_id)
    elif how == "preemption":
        slurm.ask("scontrol", "requeue", job_id)
    slurm.wait(job_id, "PENDING")
    assert f"{job_id}  queued  (" in launch("status", job_id).out
    assert "Requeued 1 time." in launch("why", job_id).out
    text = log.read_text()
    assert "run the same command to resume" in text, text
    assert ("requeued (time 1 of 10)" in text) is (how != "preemption")
    slow.go.touch()
    slurm.start_now(job_id)
    slurm.wait(job_id, "COMPLETED")
    assert "continuing at " in log.read_text()
    assert f"{job_id}  done  (" in launch("status", job_id).out
    assert contents(work / "out") == undisturbed()


def test_no_more_than_so_often(slurm, launch, slow: Slow, work: Path) -> None:
    words = ("slurm", "out", *slow.models, *OPTIONS, "--python", slow.python)
    job_id = submitted(launch(*words, "--deadline", "1s", "--requeue", "0"))
    slurm.wait(job_id, "FAILED")
    assert f"{job_id}  stopped, resumable  (exit code 75)" in launch("status", job_id).out


def test_two_ranks_on_two_nodes(slurm, launch, slow: Slow, work: Path, undisturbed) -> None:
    """Stopped on the way: srun kills its tasks when it gets TERM, so they are told by USR1."""
    words = ("slurm", "out", *slow.models, *OPTIONS, "--nodes", "2", "--gpus", "2")
    # Slurm ends the script that asks to be requeued, so nothing is left for it to do by then.
    words = (*words, "--setup", 'rm() { sleep 1; command rm "$@"; }')
    job_id = submitted(launch(*words, "--python", slow.python))
    log = work / "out.job" / "out.log"
    begun(slow)
    slurm.ask("scancel", "--batch", "--signal=USR1", job_id)
    slurm.wait(job_id, "PENDING")
    text = log.read_text()
    assert text.count("run the same command to resume") == 2, text
    assert "requeued (time 1 of 10)" in text
    slow.go.touch()
    slurm.start_now(job_id)
    slurm.wait(job_id, "COMPLETED")
    text = log.read_text()
    assert "share 1 of 2 is done" in text or "share 2 of 2 is done" in text, text
    assert contents(work / "out") == undisturbed()
    assert not list((work / "out.job").glob("run.*"))


def test_an_array_with_one_member_that_fails(slurm, launch, models, work: Path) -> None:
    (work / "s.yml").write_text(SWEEP.replace("[1, 3, 7]", "[1, 2, 3, 4, 5, 6]"))
    (work / "runs" / "w4").mkdir(parents=True)
    (work / "runs" / "w4" / ".merge-partial").touch()
    then = """printf '{"loss": {"valid": 0.%s}}\\n' "${PWD: -1}" """
    words = ("sweep", "s.yml", "slurm", "--array", "--at-once", "2", *OPTIONS)
    words = (*words, "--python", sys.executable, "--then", then)
    done = launch(*words)
    assert done.code == 0, done.err
    # MaxArraySize is 5: numbers 0 to 4.
    arrays = {line.split("_")[0] for line in done.out.splitlines() if re.match(r"\d+_\d", line)}
    assert len(arrays) == 2
    results = json.loads(waited(launch))
    assert [row["state"] for row in results] == [*["done"] * 3, "failed", "done", "done"]
    assert [row["valid"] for row in results if row["state"] == "done"] == [
        *(0.1, 0.2, 0.3, 0.5, 0.6)
    ]
    (work / "runs" / "w4" / ".merge-partial").unlink()
    again = launch(*words)
    assert again.code == 0, again.err
    assert "5 of 6 are done" in again.err
    lines = [line for line in again.out.splitlines() if re.match(r"\d+_\d", line)]
    assert len(lines) == 1 and lines[0].endswith("  w4")
    assert [row["state"] for row in json.loads(waited(launch))] == ["done"] * 6
    best = launch("sweep", "s.yml", "results", "--sort", "valid", "--descending").out
    assert [line.split()[0] for line in best.splitlines()[1:3]] == ["w6", "w5"]


def waited(launch) -> str:
    def look() -> str:
        done = launch("sweep", "s.yml", "results", "--json")
        assert done.code == 0, done.err
        words = {row["state"] for row in json.loads(done.out)}
        return "" if any("queued" in word or "running" in word for word in words) else done.out

    return until(look, "the sweep to end", 180)


def test_a_controller_that_is_away(slurm, launch, models, work: Path, monkeypatch) -> None:
    text = (slurm.folder / "slurm.conf").read_text()
    away = work / "away.conf"
    away.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", text) + "MessageTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(away))
    done = launch("slurm", "out", *models)
    assert (done.code, done.out) == (6, "")
    assert "sbatch failed with status 1: " in done.err
    assert not (work / "out.job").exists()


def test_a_job_whose_answer_got_lost_is_found(
    slurm, launch, models, tmp_path: Path, monkeypatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/bash\nPATH=${{PATH#*:}}\n[ -e {tmp_path}/taken ] && sbatch "$@" > /dev/null\n'
        "echo 'sbatch: error: Socket timed out on send/recv operation' >&2\nexit 1\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    words = ("slurm", "my out", *models, *OPTIONS, "--directive=--hold")
    done = launch(*words)
    assert (done.code, "may have been taken" in done.err) == (6, True)
    (tmp_path / "taken").touch()
    first, second = submitted(launch(*words)), submitted(launch(*words))
    assert int(second) == int(first) + 1
    assert launch("status", "my out").out.startswith(f"{second}  queued")
    for job_id in (first, second):
        assert launch("cancel", job_id).code == 0
        slurm.wait(job_id, "CANCELLED")
