"""Records: several processes at once, what shells complete, and following with an interrupt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from merge_launch.tracking import logs, records
from merge_launch.tracking.records import Record
from support.paths import SOURCES
from support.shell_completion import complete

ROOT = Path(records.__file__).parents[1]


def test_several_processes_write_at_once(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    code = (
        "import sys; from merge_launch.tracking import records\n"
        "for n in range(20):\n"
        "    for server in ('own' + sys.argv[1], 'shared'):\n"
        "        records.save(records.Record(f'{n}.{server}', 'pbs', '', '/out' * 200, '/log'))\n"
        "        held, faults = records.load()\n"
        "        assert not faults, faults\n"
    )
    env = {**os.environ, "PYTHONPATH": SOURCES}
    argv = [sys.executable, "-c", code]
    processes = [subprocess.Popen([*argv, str(number)], env=env) for number in range(3)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    held, faults = records.load()
    assert (len(held), faults) == (4 * 20, [])
    assert not [path for path in records.folder().iterdir() if path.suffix != ".json"]


def test_keys_of_a_later_version_are_left_alone() -> None:
    record = Record("5", "pbs", "", "/out", "/log", name="soup")
    records.save(record)
    path = records.path_of(record)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    assert records.find("soup").job_id == "5"


def test_the_same_id_of_two_schedulers() -> None:
    for backend in ("pbs", "slurm"):
        records.save(Record("34", backend, "", f"/{backend}", "/log"))
    assert len(records.load()[0]) == 2
    assert records.find("/slurm").backend == "slurm"


@pytest.mark.parametrize(
    "odd",
    [
        {"job_id": 5},
        {"job_id": "-x"},
        {"job_id": "5\x1b[2J"},
        {"job_id": ""},
        {"backend": "lsf"},
        {"cluster": "\ud800"},
        {"out": ["x"]},
        {"log": "a\0b"},
        {"submitted_s": "now"},
        {"submitted_s": 1e300},
        {"submitted_s": float("nan")},
        {"ticket": [1]},
        {"also": "/out"},
        {"also": [1]},
        {"log_bytes": -1},
        {"superseded": 1},
    ],
)
def test_a_record_of_another_form_is_told(odd: dict[str, object], launch) -> None:
    records.save(Record("5", "pbs", "", "/out", "/log", state="DONE"))
    whole = {"job_id": "6", "backend": "pbs", "dialect": "", "out": "/o", "log": "/l"}
    (records.folder() / "pbs.6.json").write_text(json.dumps({**whole, **odd}))
    done = launch("jobs")
    assert done.code == 0 and done.out.splitlines()[1].startswith("5 ")
    assert "pbs.6.json: not a readable record" in done.err and "\x1b" not in done.err


def test_a_cluster_is_no_folder() -> None:
    record = Record("5", "pbs", "", "/out", "/log", cluster="../../x")
    assert records.path_of(record).parent == records.folder()


def test_a_damaged_record_does_not_hide_the_others(launch) -> None:
    records.save(Record("5", "pbs", "", "/out", "/log", state="DONE"))
    (records.folder() / "pbs.6.json").write_text("{")
    done = launch("jobs")
    assert done.code == 0
    assert "pbs.6.json: not a readable record" in done.err
    assert done.out.splitlines()[1].startswith("5 ")


def test_no_jobs_yet(launch) -> None:
    done = launch("jobs")
    assert (done.code, done.err) == (0, "merge-launch: nothing was submitted from here yet\n")
    done = launch("jobs", "--json")
    assert (done.code, done.out, done.err) == (0, "[]\n", "")


def test_a_beginning_of_many_ids(launch) -> None:
    for number in range(1, 7):
        records.save(Record(f"1{number}", "pbs", "", "/out", "/log", submitted_s=number))
    done = launch("status", "1")
    assert done.code == 2
    assert "1: 6 jobs begin with this (16, 15, 14, 13 and 2 more); give more of the id" in done.err


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("merge-launch logs so", ["soup"]),
        ("merge-launch logs 3", ["34.server"]),
        ("merge-launch pbs --dialect po", ["polaris"]),
        ("merge-launch pbs --profile gadi-", ["gadi-a100"]),
        ("merge-launch slurm --engine mergekit", ["mergekit"]),
    ],
)
def test_the_shell_completes(words: str, completions: list[str], work: Path) -> None:
    pytest.importorskip("argcomplete")
    records.save(Record("34.server", "pbs", "", "/out", "/log", name="soup"))
    assert complete(words, work) == completions


def test_an_interrupt_leaves_the_job_alone(launch, fakes, models, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs, "follow", interrupted)
    done = launch("pbs", "out", *models, "--follow")
    assert done.code == 0
    assert "the job goes on; to cancel it: merge-launch cancel 12.pbs-server" in done.err
    assert not [call for call in fakes.calls() if call.startswith("qdel")]


HOSTILE = [
    {"job_id": "--me"},
    {"job_id": "12 13"},
    {"job_id": "../../x"},
    {"job_id": ""},
    {"job_id": 34},
    {"job_id": "35", "after": "--me"},
    {"job_id": "35", "backend": "../x"},
    {"job_id": "35", "script": 3},
    {"job_id": "35", "colour": "red", "also": 3},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
@pytest.mark.parametrize("place", ["state", "job folder"])
def test_a_record_that_no_backend_wrote_is_not_obeyed(
    changes: dict[str, object], place: str, launch, fakes, models, work: Path
) -> None:
    assert launch("slurm", "out", *models).code == 0
    (kept,) = records.folder().glob("*.json")
    (copy,) = (work / "out.job").glob("*.json")
    path, other = (kept, copy) if place == "state" else (copy, kept)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    other.unlink()
    for command in ("cancel", "retry", "status"):
        calls = fakes.calls()
        done = launch(command, "out")
        assert (done.code, done.out, fakes.calls()) == (2, "", calls)
        assert f"{path.name}: not a readable record of a job (" in done.err


def test_the_job_folder_of_another_user_is_not_trusted(
    launch, fakes, models, monkeypatch, work: Path
) -> None:
    assert launch("slurm", "out", *models).code == 0
    (fakes.folder / "34.state").write_text("FAILED|NonZeroExitCode|N/A\n")
    calls = fakes.calls()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    done = launch("retry", "out")
    assert (done.code, done.out) == (4, "")
    assert "out.sbatch: belongs to another user, of id " in done.err
    assert not [call for call in fakes.calls()[len(calls) :] if call.startswith("sbatch")]
    for path in records.folder().glob("*.json"):
        path.unlink()
    calls = fakes.calls()
    for command in ("cancel", "retry", "status"):
        done = launch(command, "out")
        assert (done.code, done.out, fakes.calls()) == (2, "", calls)
        assert "belongs to another user" in done.err
