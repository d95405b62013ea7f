"""Following a job: the exit code is that of its end, and what is forgotten is not awaited."""

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from merge_launch.tracking import logs
from support.launcher_fixtures import finished


@pytest.fixture(autouse=True)
def _soon(monkeypatch) -> None:
    for name in ("POLL_S", "ASK_EVERY_S", "ASK_AGAIN_S"):
        monkeypatch.setattr(logs, name, 0.0)


def clock(sleep: Callable[[float], None]) -> SimpleNamespace:
    """Return a clock of its own for the log: commands that are waited for sleep as well."""
    return SimpleNamespace(monotonic=time.monotonic, sleep=sleep)


@pytest.fixture
def job(launch, fakes, models, work) -> str:
    """Submit a job; its OUT proves whatever success is told of it."""
    assert launch("slurm", "out", *models).code == 0
    finished(work / "out")
    return "34"


@pytest.mark.parametrize(
    ("state", "left", "code", "words"),
    [
        ("COMPLETED|None", None, 0, ""),
        ("COMPLETED|None", 0, 0, ""),
        ("FAILED|NonZeroExitCode", 3, 3, "34  failed  (exit code 3)"),
        ("FAILED|NonZeroExitCode", 75, 75, "34  stopped, resumable  (exit code 75)"),
        ("FAILED|JobLaunchFailure", None, 6, "34  failed  (FAILED: JobLaunchFailure)"),
        ("OUT_OF_MEMORY|OutOfMemory", None, 6, "34  failed  (OUT_OF_MEMORY: OutOfMemory)"),
        ("CANCELLED|None", None, 75, "34  cancelled  (CANCELLED)"),
        ("CANCELLED|None", 75, 75, "34  cancelled  (CANCELLED)"),
        ("TIMEOUT|TimeLimit", None, 75, "34  stopped, resumable  (TIMEOUT: TimeLimit)"),
        ("NODE_FAIL|NodeDown", None, 75, "34  stopped, resumable  (NODE_FAIL: NodeDown)"),
    ],
)
def test_the_code_of_the_end(job, launch, fakes, work, state, left, code, words) -> None:
    (fakes.folder / "34.state").write_text(f"{state}|N/A\n")
    if left is not None:
        (work / "out.job" / "34.exit").write_text(f"{left}\n")
    done = launch("logs", "-f", job)
    assert done.code == code
    assert words in done.err


def test_a_forgotten_job_is_not_awaited(job, launch, fakes) -> None:
    (fakes.folder / "purged").touch()
    done = launch("logs", "-f", job)
    assert done.code == 6
    assert "34  unknown  (unknown to the scheduler, and no exit code)" in done.err


def test_an_exit_code_on_its_way_is_awaited(job, launch, fakes, work, monkeypatch) -> None:
    """A shared file system shows it later than the scheduler forgets the job."""
    (fakes.folder / "purged").touch()
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        (work / "out.job" / "34.exit").write_text("4\n")

    monkeypatch.setattr(logs, "time", clock(sleep))
    assert launch("logs", "-f", job).code == 4
    assert len(naps) == 1


def test_a_restarted_job_is_followed_on(job, launch, fakes, work, monkeypatch) -> None:
    """Its first run has left an exit code."""
    exit_file, state = work / "out.job" / "34.exit", fakes.folder / "34.state"
    exit_file.write_text("75\n")
    course = iter([("RUNNING", None), ("COMPLETED", "0\n")])

    def sleep(seconds: float) -> None:
        word, code = next(course)
        state.write_text(f"{word}|None|N/A\n")
        exit_file.unlink(missing_ok=True)
        if code is not None:
            exit_file.write_text(code)

    monkeypatch.setattr(logs, "time", clock(sleep))
    assert launch("logs", "-f", job).code == 0


def test_a_submission_that_is_followed(launch, fakes, models, python, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    program = python(running='echo "merge-worker: m2 is truncated" >&2; exit 3')
    done = launch("slurm", "out", *models, "--python", program, "--follow")
    assert done.code == 3
    assert "m2 is truncated" in done.out
