"""Percent and time left of a running job, from the lines that the worker writes into its log."""

import io
import json
from pathlib import Path

import pytest

from merge_launch import backends
from merge_launch.backends.base import JobState, Status
from merge_launch.tracking import progress, records, status
from merge_launch.tracking.progress import Progress, read
from merge_launch.tracking.records import Record
from merge_worker.system.progress import Progress as Written
from merge_worker.units import GIB

BEGUN = "merge-launch: begun on node3 at 2026-11-30 05:19:45\n"
RUNNING = Status(JobState.RUNNING, "on node3")


def line(percent: int, mode: str = "plain", rank: int = 0, world: int = 1) -> str:
    """Return what the worker writes after 10 seconds in which it has done `percent` of 4 GiB."""
    stream = io.StringIO()
    counter = Written(mode, 4 * GIB, "out", stream)
    counter.rank, counter.world = rank, world
    counter.wrote(4 * GIB * percent // 100)
    counter._began -= 10
    counter._show()
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_the_last_line_counts(mode: str) -> None:
    lines = [BEGUN, line(25, mode), "warning: something\n", line(50, mode), "note: 99 % (a)\n"]
    assert str(read(lines)) == "50 %, 10 s left"
    assert str(read([line(0, mode)])) == "0 %"


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_of_several_processes_the_slowest_counts(mode: str) -> None:
    lines = [line(25, mode, 0, 2), line(20, mode, 1, 2), line(50, mode, 0, 2)]
    assert read(lines) == Progress(20.0, "40 s")


@pytest.mark.parametrize("last", [BEGUN, "out: 9 tensors merged, 0 copied; 1 KiB read\n"])
def test_lines_before_a_begin_or_an_end_do_not_count(last: str) -> None:
    assert read([BEGUN, line(25), last]) is None


@pytest.fixture
def job(launch, fakes, work: Path, models: list[Path]) -> Record:
    job_id = launch("slurm", "out", *models).out.split()[1]
    (fakes.folder / f"{job_id}.state").write_text("RUNNING|None|N/A\n")
    return records.find(job_id)


def test_status_and_why_tell_percent_and_time(job: Record, launch) -> None:
    assert "%" not in launch("status", job.job_id).out
    Path(job.log).write_text(BEGUN + line(25))
    assert ", 25 %, 30 s left)  /" in launch("status", job.job_id).out
    facts = json.loads(launch("status", job.job_id, "--json").out)
    assert facts["progress"] == {"percent": 25.0, "left": "30 s"}
    assert "\nProgress: 25 %, 30 s left.\n" in launch("why", job.job_id).out
    assert json.loads(launch("why", job.job_id, "--json").out)["progress"]["percent"] == 25.0


def test_an_earlier_job_of_this_log_does_not_count(job: Record, launch, work: Path) -> None:
    earlier = BEGUN + line(75)
    Path(job.log).write_text(earlier)
    records.save(records.dataclasses.replace(job, log_bytes=len(earlier)))
    assert "%" not in launch("status", job.job_id).out
    Path(job.log).write_text(earlier + line(25))
    assert "25 %" in launch("status", job.job_id).out


def test_the_log_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (text for text in (BEGUN, line(25)))
    monkeypatch.setattr(backends.get("beaker"), "log_lines", lambda job_id, follow: lines)
    record = Record("01J", "beaker", "", "/weka/out", "https://beaker.org")
    assert progress.progress_of(record, RUNNING) == Progress(25.0, "30 s")


def test_records_are_read_once_for_all_jobs_that_wait(
    fakes, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fakes.folder / "purged").touch()
    waiting = [
        Record(str(n), "slurm", "", f"/o{n}", f"/l{n}", after=str(n + 100), submitted_s=1)
        for n in range(1, 41)
    ]
    for record in waiting:
        records.save(record)
    calls = []
    load = records.load
    monkeypatch.setattr(records, "load", lambda: calls.append(1) or load())
    status.query(waiting)
    assert len(calls) == 1
