"""A second job for one OUT: a warning, late, and never at the cost of the submission."""

import json
import os
import time
from pathlib import Path

import pytest

from merge_launch.submission import submit
from merge_launch.tracking import conflicts, records

both = pytest.mark.parametrize("backend", ["pbs", "slurm"])
IDS = {"pbs": ("12.pbs-server", "13.pbs-server"), "slurm": ("34", "35")}
ASKED = {"pbs": "qstat", "slurm": "squeue"}


@pytest.fixture
def twice(launch, fakes, models):
    """Submit a job for an OUT that is taken; return the warning, and the calls made for it."""

    def submit(backend: str, out: str = "out", *words: object) -> tuple[str, list[str]]:
        before = len(fakes.calls())
        done = launch(backend, out, *models, *words)
        assert done.code == 0, done.err
        assert done.out.startswith("job     ")
        return done.err, [call.split()[0] for call in fakes.calls()[before:]]

    return submit


@both
def test_the_first_still_waits(backend: str, twice) -> None:
    submits = {"pbs": "qsub", "slurm": "sbatch"}[backend]
    assert twice(backend) == ("", [submits])
    first = IDS[backend][0]
    # Another recipe is another merge of the same folder, which is worse.
    warning, calls = twice(backend, "out/", "--weights", "2,1,1")
    assert warning == (
        f"warning: {first} is queued for the same OUT, and only one of them can "
        f"write it: merge-launch status {first}, merge-launch cancel {first}\n"
    )
    assert calls == [submits, ASKED[backend]]


def test_of_several_the_newest_is_named(twice) -> None:
    twice("pbs")
    twice("pbs")
    warning, calls = twice("pbs")
    assert "13.pbs-server (and 1 more) is queued" in warning
    assert calls == ["qsub", "qstat"]


def test_another_out_or_backend_is_none(twice) -> None:
    twice("pbs")
    assert twice("pbs", "out2") == ("", ["qsub"])
    assert twice("slurm") == ("", ["sbatch"])


def test_what_waits_for_the_first_is_not_counted(twice) -> None:
    twice("pbs", "out", "--then", "true")
    warning, _ = twice("pbs", "out", "--then", "true")
    assert "12.pbs-server is queued" in warning


@both
def test_the_code_beside_out_needs_no_question(backend: str, twice, work: Path) -> None:
    twice(backend)
    (work / "out.job" / f"{IDS[backend][0]}.exit").write_text("4\n")
    warning, calls = twice(backend)
    assert (warning, len(calls)) == ("", 1)


def test_what_was_seen_to_end_needs_none(twice, launch, fakes) -> None:
    twice("pbs")
    fakes.pbs("qdel", IDS["pbs"][0])
    assert "cancelled" in launch("status", "out").out
    assert twice("pbs") == ("", ["qsub"])


def test_what_ended_unseen_is_no_rival(twice, fakes) -> None:
    twice("pbs")
    fakes.pbs("qdel", IDS["pbs"][0])
    assert twice("pbs") == ("", ["qsub", "qstat"])


def test_a_stopped_job_may_have_come_back(twice, fakes, work: Path) -> None:
    twice("pbs")
    (work / "out.job" / "12.pbs-server.exit").write_text("75\n")
    assert "12.pbs-server is queued" in twice("pbs")[0]


@both
def test_not_having_an_answer_is_no_fault(backend: str, twice, launch, fakes) -> None:
    twice(backend)
    fakes.answer(ASKED[backend], 255, err="cannot connect\n")
    assert twice(backend)[0] == "", "nobody saw it in the queue"
    (fakes.folder / f"{ASKED[backend]}.status").unlink()
    launch("jobs")
    fakes.answer(ASKED[backend], 255, err="cannot connect\n")
    assert " was last seen queued for the same OUT" in twice(backend)[0]


def test_a_silent_scheduler_is_left_soon(launch_process, fakes, models, tmp_path, monkeypatch):
    """After the job's id is out, and once."""
    launch_process("pbs", "out", *models)
    program = tmp_path / "silent" / "qstat"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho asked >> "$FAKES/asked"\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    began = time.monotonic()
    done = launch_process("pbs", "out", *models)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("job     13.pbs-server\n")
    assert time.monotonic() - began < conflicts.PATIENCE_S + 30
    assert (fakes.folder / "asked").read_text() == "asked\n"


def test_a_dry_run_asks_nobody(launch, fakes, models) -> None:
    launch("pbs", "out", *models)
    before = fakes.calls()
    for words in (("pbs", "out", *models, "--dry-run"), ("render", "pbs", "out", *models)):
        done = launch(*words)
        assert (done.code, done.err) == (0, "")
    assert fakes.calls() == before


def test_damaged_records_are_no_fault(twice) -> None:
    twice("pbs")
    (records.folder() / "pbs.5.json").write_text("{")
    (path,) = records.folder().glob("pbs.12.*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "DONE"}))
    assert twice("pbs") == ("", ["qsub"])


def test_a_state_folder_that_cannot_be_read_is_no_fault(twice, monkeypatch) -> None:
    def shut() -> None:
        raise PermissionError(13, "Permission denied")

    twice("pbs")
    monkeypatch.setattr(records, "load", shut)
    assert twice("pbs") == ("", ["qsub"])


def test_retry_tells_it_too(twice, launch, fakes) -> None:
    twice("pbs")
    launch("cancel", "out")
    launch("status", "out")
    twice("pbs")
    done = launch("retry", "12.pbs-server")
    assert "13.pbs-server is queued for the same OUT" in done.err


def test_why_does_not_quote_the_first(twice, launch, fakes, python) -> None:
    """In whose log both write."""
    twice("pbs", "out", "--python", python(running="echo 'error: m2 is truncated'; exit 3"))
    fakes.pbs("schedule")
    assert "m2 is truncated" in launch("why", "12.pbs-server").out
    twice("pbs")
    launch("cancel", "13.pbs-server")
    reasons = launch("why", "13.pbs-server").out
    assert "The job never ran" in reasons and "m2 is truncated" not in reasons
    assert "m2 is truncated" in launch("why", "12.pbs-server").out


def test_a_clock_that_is_ahead_hides_no_log(
    twice, launch, fakes, python, monkeypatch, work
) -> None:
    """The clock of a login node is an hour ahead, and the job left no exit code."""
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(submit.time, "time", lambda: now + 3600)
        twice("pbs", "out", "--python", python(running="echo 'error: m2 is truncated'; exit 3"))
    fakes.pbs("schedule")
    (work / "out.job" / "12.pbs-server.exit").unlink()
    assert "m2 is truncated" in launch("why", "12.pbs-server").out
    assert "failed" in launch("status", "12.pbs-server").out
