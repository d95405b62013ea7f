"""Slurm 22.05 after squeue has forgotten a job: its sacct has no --array, if it has a database."""

import json
from pathlib import Path

import pytest

from merge_launch.tracking import queries
from support.launcher_fixtures import finished


@pytest.fixture
def forgotten(launch, fakes, models):
    """Jobs that only sacct knows; OUT proves whatever success is told of them."""
    assert launch("slurm", "out", *models).code == 0
    finished(Path("out"))
    (fakes.folder / "accounting").touch()
    (fakes.folder / "purged").touch()


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("COMPLETED|None", "done  (COMPLETED)"),
        ("TIMEOUT|TimeLimit", "stopped, resumable  (TIMEOUT: TimeLimit)"),
        ("CANCELLED by 1000|None", "cancelled  (CANCELLED by 1000)"),
        ("NODE_FAIL|NodeDown", "stopped, resumable  (NODE_FAIL: NodeDown)"),
    ],
)
def test_the_database_knows(forgotten, launch, fakes, state: str, shown: str) -> None:
    (fakes.folder / "34.state").write_text(f"{state}|N/A\n")
    done = launch("status", "34")
    assert (done.code, done.err) == (0, "")
    assert shown in done.out
    assert launch("why", "34").code == 0
    assert json.loads(launch("jobs", "--json").out)[0]["state"] == shown.partition("  ")[0]


def test_members_that_wait_have_one_line(launch, sweep, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm", "--array").code == 0
    (fakes.folder / "accounting").touch()
    (fakes.folder / "purged").touch()
    (fakes.folder / "34_1.state").write_text("FAILED|NonZeroExitCode|N/A\n")
    done = launch("status", "34")
    assert done.code == 0, done.err
    states = [line.split()[:2] for line in done.out.splitlines()]
    assert states == [["34_0", "queued"], ["34_1", "failed"], ["34_2", "queued"]]


def test_without_a_database(forgotten, launch, fakes) -> None:
    (fakes.folder / "accounting").unlink()
    done = launch("status", "34")
    assert (done.code, done.err) == (0, "")
    assert "unknown  (unknown to the scheduler, and no exit code)" in done.out


def test_eleven_thousand_ids_fit_into_arguments() -> None:
    ids = [f"{12_345_678 + number}_{number}" for number in range(11_000)]
    portions = list(queries.portions(ids))
    assert [job_id for some in portions for job_id in some] == ids
    assert max(len(",".join(some)) for some in portions) < 128 * 1024 - len("--jobs=")
    assert list(queries.portions([])) == []


def test_the_users_defaults_change_no_answer(launch, fakes, models, monkeypatch) -> None:
    """The fakes refuse them."""
    assert launch("slurm", "out", *models).code == 0
    for name in ("SQUEUE_STATES", "SQUEUE_FORMAT", "SACCT_FORMAT", "SCANCEL_USER"):
        monkeypatch.setenv(name, "x")
    assert "queued" in launch("status", "34").out
    assert "asked to end" in launch("cancel", "34").out
    assert "cancelled" in launch("status", "34").out
    assert launch("slurm", "b", *models).code == 0
    (fakes.folder / "accounting").touch()
    (fakes.folder / "purged").touch()
    assert "queued" in launch("status", "35").out
