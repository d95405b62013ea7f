"""local --detach: a job of this machine, with states, a log and a verdict like any other."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_launch.tracking import records
from support.launcher_fixtures import LEAVE_MANIFEST, has_ended

ENDLESS = 'trap "exit 75" TERM; echo ready; while :; do sleep 0.05; done'


@pytest.fixture
def detached(launch_process, models, python) -> Callable[..., str]:
    """Starts a merge whose worker is a line of bash; the job's id."""

    def start(running: str) -> str:
        done = launch_process("local", "out", *models, "--python", python(running), "--detach")
        assert done.code == 0, done.err
        return str(done.out.split()[1])

    return lambda running: start(running)


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], Path]:
    def make(running: str) -> Path:
        path = tmp_path / "their-python"
        path.write_text(
            f'#!/bin/bash\nif [ "$1" = -I ]; then exec {sys.executable} "$@"; fi\n'
            f"{LEAVE_MANIFEST}{running}\n"
        )
        path.chmod(0o755)
        return path

    return make


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_merge_that_goes_on_without_us(launch_process, launch, models, work: Path) -> None:
    done = launch_process("local", "out", *models, "--detach", "--progress", "plain")
    assert done.code == 0, done.err
    job = done.out.split()[1]
    assert f"follow  merge-launch logs -f {job}\n" in done.out
    until(lambda: has_ended(work / "out.job", job))
    assert launch("status", job).out.startswith(f"{job}  done  (exit code 0)")
    assert (work / "out" / "merge_manifest.json").exists()
    assert "2 tensors merged" in launch("logs", "out").out


def test_running_cancelled_retried(detached, launch, python, work: Path) -> None:
    job = detached(ENDLESS)
    until(lambda: "ready" in launch("logs", job).out)
    assert launch("status", job).out.startswith(f"{job}  running")
    assert launch("cancel", job).code == 0
    until(lambda: has_ended(work / "out.job", job))
    assert launch("status", job).out.startswith(f"{job}  stopped, resumable  (exit code 75)")
    assert "was over already" in launch("cancel", job).out
    python("echo second")
    again = launch("retry", job).out.split()[1]
    assert again != job
    until(lambda: has_ended(work / "out.job", again))
    assert "ready\n" in (log := launch("logs", "out").out) and "second\n" in log


def test_cancelled_during_the_setup(launch_process, launch, models, work: Path) -> None:
    done = launch_process("local", "out", *models, "--detach", "--setup", "echo ready; sleep 100")
    job = done.out.split()[1]
    until(lambda: "ready" in launch("logs", job).out)
    assert launch("cancel", job).code == 0
    until(lambda: has_ended(work / "out.job", job))
    assert launch("status", job).out.startswith(f"{job}  stopped, resumable  (exit code 75)")
    assert not (work / "out").exists()


def test_a_setup_that_ends_the_job(launch_process, launch, models, work: Path) -> None:
    done = launch_process("local", "out", *models, "--detach", "--setup", "exit 0")
    job = done.out.split()[1]
    until(lambda: has_ended(work / "out.job", job))
    assert launch("status", job).out.startswith(f"{job}  failed  (exit code 1)")
    assert "merge-launch: --setup ended with exit code 0: exit 0" in launch("logs", job).out


def test_a_process_that_was_killed(detached, launch) -> None:
    job = detached(ENDLESS)
    until(lambda: "ready" in launch("logs", job).out)
    os.killpg(int(job.rpartition("-")[2]), signal.SIGKILL)
    until(lambda: "running" not in launch("status", job).out)
    explanation = launch("why", job).out
    assert "The job was stopped before its end" in explanation
    assert "ended without an exit code: killed, or the machine was restarted" in explanation


def test_another_process_of_the_same_number(detached, launch) -> None:
    job = detached("exit 0")
    record = records.find(job)
    until(lambda: record.exit_file.exists())
    record.exit_file.unlink()
    # This very process has the number, and not the id.
    other = f"{job.rpartition('-')[0]}-{os.getpid()}"
    path = records.path_of(record)
    path.write_text(path.read_text().replace(job, other))
    assert launch("status", other).out.startswith(f"{other}  stopped, resumable")
    assert launch("cancel", other).out == f"{other}  was over already (stopped, resumable)\n"


def test_a_job_of_another_machine(detached, launch) -> None:
    job = detached("exit 0")
    record = records.find(job)
    until(lambda: record.exit_file.exists())
    record.exit_file.unlink()
    path = records.path_of(record)
    path.write_text(path.read_text().replace(record.host, "other-host"))
    assert "unknown  (started on other-host; query it there)" in launch("status", job).out
