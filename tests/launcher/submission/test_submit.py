"""From submission to verdict with fake schedulers that run the job."""

import os
import re
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest

from merge_launch.backends.base import JobState, Status
from merge_launch.errors import UsageError
from merge_launch.job.source import job_folder
from merge_launch.submission import submit
from merge_launch.tracking import logs, records
from merge_launch.tracking.records import Record
from support.paths import SOURCES

IDS = {"pbs": "12.pbs-server", "slurm": "34"}
both = pytest.mark.parametrize("backend", IDS)


@pytest.mark.slow
@both
def test_a_job_from_submission_to_verdict(
    backend: str, launch, fakes, models, work: Path, monkeypatch
) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    job_id = IDS[backend]
    done = launch(backend, "my out", *models, "--python", sys.executable, "--progress", "plain")
    assert done.code == 0, done.err
    assert (work / "my out" / "merge_manifest.json").exists()
    folder = job_folder(str(work / "my out"))
    assert (folder / f"{job_id}.exit").read_text() == "0\n"
    assert re.fullmatch("my-out-[0-9a-f]{8}.job", folder.name)
    assert "2 tensors merged" in (folder / "my-out.log").read_text()
    status = launch("status", job_id)
    assert status.code == 0
    assert status.out.startswith(f"{job_id}  done  (")
    assert "2 tensors merged" in launch("logs", job_id).out
    assert "2 tensors merged" in launch("logs", "-f", job_id).out


@both
def test_a_job_that_fails(backend: str, launch, fakes, models, work: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    (work / "out").mkdir()
    (work / "out" / ".merge-partial").touch()
    words = [backend, "out", *models, "--python", sys.executable]
    assert launch(*words).code == 0
    assert "  failed  (exit code 4)" in launch("status", IDS[backend]).out
    assert launch(*words, "--follow").code == 4


@both
def test_a_waiting_job(backend: str, launch, fakes, models) -> None:
    assert launch(backend, "out", *models).code == 0
    assert "  queued  (" in launch("status", IDS[backend]).out
    assert "nothing there yet" in launch("logs", IDS[backend]).err
    assert launch("cancel", IDS[backend]).code == 0
    program = {"pbs": "qdel", "slurm": "scancel"}[backend]
    assert fakes.calls()[-1] == f"{program} -- {IDS[backend]}"


@both
def test_the_exit_code_tells_when_the_scheduler_has_forgotten(
    backend: str, launch, fakes, models, work: Path
) -> None:
    launch(backend, "out", *models)
    if backend == "pbs":
        fakes.answer("qstat", 153, err=f"qstat: Unknown Job Id {IDS[backend]}\n")
    else:
        fakes.answer("squeue", 1, err="slurm_load_jobs error: Invalid job id specified\n")
    forgotten = launch("status", IDS[backend])
    assert forgotten.code == 0, forgotten.err
    assert "  unknown  (unknown to the scheduler, and no exit code)" in forgotten.out
    (work / "out.job" / f"{IDS[backend]}.exit").write_text("75\n")
    assert "  stopped, resumable  (exit code 75)" in launch("status", IDS[backend]).out


def test_a_server_without_history_says_nothing(launch, fakes, models) -> None:
    launch("pbs", "out", *models)
    fakes.answer("qstat", 0, err="PBS is not configured to maintain job history\n")
    assert "  unknown  (" in launch("status", IDS["pbs"]).out


@both
@pytest.mark.usefixtures("no_scheduler")
def test_no_scheduler_here(backend: str, launch, models, work: Path) -> None:
    done = launch(backend, "out", *models)
    program = {"pbs": "qsub", "slurm": "sbatch"}[backend]
    assert done.code == 6
    assert f"{program} is not on this machine's PATH" in done.err
    assert "--dry-run" in done.err
    assert sorted(path.name for path in work.iterdir()) == ["m1", "m2", "m3"]


@pytest.mark.parametrize(
    ("backend", "answer", "words"),
    [
        (
            "pbs",
            (170, "", "qsub: Unknown queue\n"),
            "qsub failed with status 170: qsub: Unknown queue",
        ),
        (
            "pbs",
            (2, "", "qsub: illegal -N value\nusage: qsub [-a date_time] …\n\t[-A account]\n"),
            "status 2: qsub: illegal -N value\n",
        ),
        (
            "pbs",
            (162, "", "Connection refused\nqsub: cannot connect to server x (errno=15010)\n"),
            "Connection refused\n  qsub: cannot connect to server x",
        ),
        ("pbs", (0, "", ""), "qsub: expected a job id, got: nothing"),
        ("pbs", (1, "an error on stdout\n", ""), "status 1: an error on stdout"),
        (
            "slurm",
            (1, "", "sbatch: error: invalid partition\n"),
            "sbatch: error: invalid partition",
        ),
        (
            "slurm",
            (0, "accepted\n", ""),
            "expected a job id, got: accepted",
        ),
    ],
)
def test_refusals_in_the_schedulers_own_words(
    backend: str, answer: tuple[int, str, str], words: str, launch, fakes, models
) -> None:
    program = {"pbs": "qsub", "slurm": "sbatch"}[backend]
    fakes.answer(program, *answer)
    done = launch(backend, "out", *models)
    assert (done.code, done.out) == (6, "")
    assert words in done.err


def test_a_real_refusal_of_a_directive(launch, fakes, models) -> None:
    done = launch("slurm", "out", *models, "--partition", "nowhere")
    assert done.code == 6
    assert "invalid partition specified: nowhere" in done.err


def test_a_folder_that_cannot_be_made(launch, fakes, models) -> None:
    Path("file").touch()
    done = launch("pbs", "file/out", *models)
    assert done.code == 4
    assert fakes.calls() == []


def test_an_unknown_job(launch, fakes, models) -> None:
    done = launch("status", "99")
    assert done.code == 2
    assert "99: no job of this id, name or OUT was submitted from here" in done.err
    launch("pbs", "out", *models)
    assert "did you mean '12.pbs-server'" in launch("logs", "12.pbs-servr").err


def test_a_state_folder_that_cannot_be_written(
    launch, fakes, models, tmp_path, monkeypatch
) -> None:
    (tmp_path / "state").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    done = launch("slurm", "my out", *models, "--then", "ls")
    assert done.code == 0
    assert "warning: cannot note the job" in done.err and "by OUT only" in done.err
    out = Path.cwd() / "my out"
    assert f"cancel  merge-launch cancel '{out}'\n" in done.out
    for word in ("my out", str(out)):
        assert launch("status", word).out.startswith("34  queued")
    assert launch("cancel", "my out").code == 0
    assert fakes.calls()[-1] == "scancel -- 34"


@pytest.mark.parametrize("words", [("slurm", "out", "m1", "m2"), ("sweep", "s.yml", "slurm")])
@pytest.mark.parametrize("reader", ["full disk", "gone"])
def test_a_job_is_known_before_anything_is_printed(
    words: tuple[str, ...], reader: str, fakes, sweep: Path
) -> None:
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "merge_launch", *words],
            env={**os.environ, "PYTHONPATH": SOURCES},
            stdout=full if reader == "full disk" else write,
            stderr=subprocess.PIPE,
            text=True,
        )
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert "34" in done.stderr and "warning: cannot print" in done.stderr
    count = 3 if words[0] == "sweep" else 1
    assert sorted(job.job_id for job in records.load()[0]) == ["34", "35", "36"][:count]


@pytest.mark.parametrize(
    ("backend", "status", "text"),
    [
        ("slurm", 0, "note: 12 hours left\n77\nYour project has 300 hours left.\n"),
        ("slurm", 0, "Submitted batch job 77\n"),
        ("slurm", 0, "Submitted batch job 77 on cluster big\nbye\n"),
        ("slurm", 0, "77;big\nsbatch: done at 12:00\n"),
        ("pbs", 0, "77.server\n\nProject ab12 has 3.5 KSU left\n"),
    ],
)
def test_a_wrapper_that_prints_lines_of_its_own(
    backend: str, status: int, text: str, launch, fakes, models
) -> None:
    fakes.answer({"pbs": "qsub", "slurm": "sbatch"}[backend], status, text)
    done = launch(backend, "out", *models)
    assert done.code == 0, done.err
    assert re.match(r"job     77(\.server)?\n", done.out)


def test_a_job_whose_answer_got_lost_is_found_by_its_name(
    launch, fakes, models, monkeypatch, work: Path
) -> None:
    monkeypatch.setenv("FAKE_LOST", "1")
    done = launch("slurm", "out", *models)
    assert done.code == 0, done.err
    assert done.out.startswith("job     34\n")
    assert records.find("out").job_id == "34"
    # The first is known by now, so that the second is the one that got lost.
    assert launch("slurm", "out", *models).out.startswith("job     35\n")


@pytest.mark.parametrize(
    ("backend", "status", "out", "err"),
    [
        ("slurm", 1, "", "sbatch: error: Socket timed out on send/recv operation\n"),
        ("slurm", 1, "", "sbatch: error: Zero Bytes were transmitted or received\n"),
        ("slurm", 1, "77\n", "wrapper: cannot write its log\n"),
        ("slurm", 0, "accepted\n", ""),
        ("pbs", 1, "", "qsub: End of File\n"),
    ],
)
def test_a_job_that_may_have_been_taken_keeps_its_files(
    backend: str, status: int, out: str, err: str, launch, fakes, models, work: Path
) -> None:
    fakes.answer({"pbs": "qsub", "slurm": "sbatch"}[backend], status, out, err)
    done = launch(backend, "out", *models)
    assert (done.code, done.out) == (6, "")
    assert "the job may have been taken: look for 'out' in the queue" in done.err
    assert [path.stem for path in (work / "out.job").iterdir()] == ["out"]
    assert records.load() == ([], [])


def test_records_keep_odd_ids_apart(monkeypatch) -> None:
    for job_id in ("7[].server", "7[3].server", "7"):
        record = Record(job_id, "pbs", "openpbs", "/out", "/log")
        records.save(record)
        assert records.find(job_id) == record
    assert len(list(records.folder().iterdir())) == 3


def test_a_damaged_record(launch) -> None:
    records.folder().mkdir(parents=True)
    (records.folder() / "pbs.5.json").write_text("{")
    with pytest.raises(UsageError, match="not a readable record"):
        records.find("5")


def test_follow_copies_the_log_as_it_grows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.05)
    record = Record("5", "slurm", "", str(tmp_path / "out"), str(tmp_path / "log"))
    target = StringIO()

    def job() -> None:
        for number in range(4):
            time.sleep(0.1)
            with Path(record.log).open("a") as log:
                log.write(f"line {number} é\n")
        record.exit_file.write_text("75\n")

    def ask(job: Record) -> Status:
        return Status(JobState.RUNNING if job.exit_code() is None else JobState.STOPPED)

    thread = threading.Thread(target=job)
    thread.start()
    status = logs.follow(record, target, ask)
    thread.join()
    assert status.state is JobState.STOPPED
    assert target.getvalue() == "".join(f"line {number} é\n" for number in range(4))


def test_follow_ends_with_a_job_that_left_no_exit_code(tmp_path: Path) -> None:
    record = Record("5", "slurm", "", str(tmp_path / "out"), str(tmp_path / "log"))
    end = Status(JobState.CANCELLED, "CANCELLED")
    assert logs.follow(record, StringIO(), lambda _: end) == end


def test_a_text_is_replaced_whole_with_the_bytes_of_its_names(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "job"
    path.parent.mkdir()
    path.write_text("old")
    with submit.job_files(path, os.fsdecode(b"new \xe9 \xc3\xa9\n")):
        assert path.read_bytes() == b"new \xe9 \xc3\xa9\n"
    assert list(path.parent.iterdir()) == [path]
