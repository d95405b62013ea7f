"""Arrays and sweeps as a whole, and ids that are no beginnings of others."""

import pytest

from merge_launch.tracking import records
from merge_launch.tracking.records import Record


def test_a_beginning_cancels_and_retries_nothing(launch, fakes) -> None:
    records.save(Record("240", "slurm", "", "/out", "/log", submitted_s=1))
    for verb in ("cancel", "retry"):
        done = launch(verb, "2")
        assert (done.code, done.out) == (2, "")
        assert "2: no job of this id, name or OUT" in done.err
    assert fakes.calls() == []
    assert records.find("2").job_id == "240"


def test_a_number_is_the_id_without_its_server(launch, fakes) -> None:
    for job_id in ("12.pbs-server", "120.pbs-server"):
        records.save(Record(job_id, "pbs", "", "/out", "/log", submitted_s=1))
    assert records.find("12", exact=True).job_id == "12.pbs-server"
    records.save(Record("12.other", "pbs", "", "/out", "/log", submitted_s=1))
    assert launch("cancel", "12").code == 2


@pytest.mark.parametrize(
    ("backend", "words", "ids"),
    [
        ("slurm", ("34", "runs", "runs/", "./runs"), ("34_0", "34_1", "34_2")),
        (
            "pbs",
            ("12", "12[]", "12[].pbs-server", "runs"),
            ("12[0].pbs-server", "12[1].pbs-server", "12[2].pbs-server"),
        ),
    ],
)
def test_an_array_as_a_whole(backend, words, ids, launch, sweep, fakes) -> None:
    assert launch("sweep", "s.yml", backend, "--array").code == 0
    for word in words:
        done = launch("status", word)
        assert done.code == 0, done.err
        shown = {line.split()[0]: line.split()[1] for line in done.out.splitlines()}
        assert shown == dict.fromkeys(ids, "queued"), word
    for verb in ("logs", "why", "retry"):
        done = launch(verb, words[0])
        assert done.code == 2
        assert f"{words[0]}: 3 jobs ({ids[0]}, " in done.err and "name one of them" in done.err
    before = len(fakes.calls())
    done = launch("cancel", words[0])
    assert done.code == 0, done.err
    assert done.out.count("asked to end") == 3
    # One question, one call.
    assert [call.split()[0] for call in fakes.calls()[before:]] == {
        "slurm": ["squeue", "scancel"],
        "pbs": ["qstat", "qdel"],
    }[backend]
    assert launch("status", words[0]).out.count("cancelled") == 3
    again = launch("cancel", words[0])
    assert (again.code, again.out.count("was over already (cancelled)")) == (0, 3)


def test_a_sweep_of_single_jobs_as_a_whole(launch, sweep, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm", "--then", "true").code == 0
    assert launch("status", "runs").out.count("queued") == 3
    done = launch("cancel", "runs")
    assert done.out.count("asked to end") == 3
    # With what waits for them.
    assert fakes.calls()[-1].split() == ["scancel", "--", "39", "37", "35", "34", "36", "38"]


def test_the_current_folder_is_no_sweep(launch, fakes, models) -> None:
    assert launch("slurm", "out", *models).code == 0
    for word in (".", "", "./"):
        assert launch("cancel", word).code == 2


def test_members_are_found_by_folder_without_records(launch, sweep, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm").code == 0
    for path in records.folder().iterdir():
        path.unlink()
    assert launch("status", "runs").out.count("queued") == 3


def test_cancel_of_an_unknown_job_is_no_success(launch, fakes, models) -> None:
    assert launch("slurm", "out", *models).code == 0
    (fakes.folder / "purged").touch()
    done = launch("cancel", "34")
    assert (done.code, done.out) == (6, "")
    assert "slurm: job 34 not found, nothing was cancelled: unknown to the scheduler" in done.err


def test_of_several_those_that_are_there_are_cancelled(launch, sweep, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm").code == 0
    (fakes.folder / "35.state").unlink()
    done = launch("cancel", "runs")
    assert done.code == 6
    assert done.out.count("asked to end") == 2
    assert "35: not cancelled: unknown to the scheduler" in done.err
