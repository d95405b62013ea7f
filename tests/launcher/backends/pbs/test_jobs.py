"""Jobs of a PBS that keeps state, from the queue to a verdict, and what may go wrong with them."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_launch.tracking import records
from support.launcher_fixtures import LEAVE_MANIFEST

pytestmark = pytest.mark.slow

FIRST, SECOND = "12.pbs-server", "13.pbs-server"
# A worker that notes its runs, and goes on until it is told to stop.
ENDLESS = 'echo run >> "$HOME/runs"; trap "exit 75" TERM; while :; do sleep 0.05; done'
ONCE = 'echo run >> "$HOME/runs"; mkdir -p "$4"'


@pytest.fixture
def pbs(launch, fakes, models, python) -> Callable[..., str]:
    """Submits a merge whose worker is a line of bash; the job's id."""

    def submit(running: str, *words: object) -> str:
        program = Path("their-python-bin")
        program = python(running=running) if not program.exists() else program
        done = launch("pbs", "out", *models, "--python", program, *words)
        assert done.code == 0, done.err
        return str(done.out.split()[1])

    return submit


def state(launch, job: str) -> str:
    return str(json.loads(launch("status", job, "--json").out)["state"])


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(tmp_path: Path) -> int:
    path = tmp_path / "home" / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_queued_running_done(pbs, launch, fakes, tmp_path: Path) -> None:
    job = pbs(ENDLESS.replace("while :", "for i in {1..20}"))
    assert job == FIRST
    assert state(launch, job) == "queued"
    assert "The job is in the queue." in launch("why", job).out
    fakes.pbs("schedule", "begin")
    until(lambda: runs(tmp_path) == 1)
    assert state(launch, job) == "running"
    assert "begun on" in launch("logs", job).out


def test_every_word_for_a_job(pbs, launch, fakes, work: Path) -> None:
    pbs(ONCE, "--name", "soup")
    fakes.pbs("schedule")
    for word in (FIRST, "12", "soup", "out", "./out/", str(work / "out")):
        assert launch("status", word).out.startswith(f"{FIRST}  done  ("), word
    assert "no job of this id" in launch("status", "").err
    assert "did you mean 'soup'" in launch("status", "soop").err


def test_a_beginning_of_several_ids_is_none(pbs, launch, fakes) -> None:
    pbs(ONCE)
    assert launch("pbs", "other", "m1", "m2").code == 0
    done = launch("status", "1")
    assert done.code == 2
    assert (
        "1: 2 jobs begin with this (13.pbs-server, 12.pbs-server); give more of the id" in done.err
    )


def test_out_finds_the_job_without_our_records(pbs, launch, fakes) -> None:
    pbs(ONCE)
    fakes.pbs("schedule")
    for path in records.folder().iterdir():
        path.unlink()
    assert launch("status", "out").out.startswith(f"{FIRST}  done  (exit code 0)")


def test_one_question_for_all_jobs(pbs, launch, fakes) -> None:
    pbs(ONCE)
    for name in ("b", "c"):
        assert launch("pbs", name, "m1", "m2").code == 0
    fakes.pbs("qdel", SECOND)
    before = len(fakes.calls())
    table = launch("jobs")
    assert (table.code, table.err) == (0, "")
    assert [line.split()[:3] for line in table.out.splitlines()] == [
        ["JOB", "NAME", "STATE"],
        ["14.pbs-server", "c", "queued"],
        [SECOND, "b", "cancelled"],
        [FIRST, "out", "queued"],
    ]
    assert fakes.calls()[before:] == [f"qstat -x -f -F json 14.pbs-server {SECOND} {FIRST}"]
    # What is over is not asked about again.
    launch("jobs")
    assert fakes.calls()[-1] == f"qstat -x -f -F json 14.pbs-server {FIRST}"
    rows = json.loads(launch("jobs", "--json").out)
    assert [row["job"] for row in rows] == ["14.pbs-server", SECOND, FIRST]


def test_a_job_that_can_never_run(pbs, launch, fakes) -> None:
    pbs(ONCE)
    path = fakes.folder / "pbs" / f"{FIRST}.job"
    comment = "Can Never Run: Insufficient amount of resource: ngpus (R: 99 A: 2 T: 2)"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"comment": comment}))
    assert f"PBS says: {comment}." in launch("why", FIRST).out


def test_a_failure_and_why(pbs, launch, fakes, tmp_path: Path) -> None:
    noise = r'printf "\033[31m3 %%\033[0m\n"; echo "merge-worker: m2 is truncated" >&2; exit 3'
    pbs(noise)
    fakes.pbs("schedule")
    explanation = launch("why", "out").out
    assert "The job failed." in explanation
    assert "Exit code 3: an input is missing, damaged or does not fit the others." in explanation
    assert "  | merge-worker: m2 is truncated" in explanation
    assert "merge-launch retry 12.pbs-server" in explanation
    assert json.loads(launch("why", "out", "--json").out)["exit_code"] == 3


def test_cancel_while_it_waits(pbs, launch, fakes) -> None:
    job = pbs(ONCE)
    assert "asked to end" in launch("cancel", job).out
    assert state(launch, job) == "cancelled"
    assert "The job never ran" in launch("why", job).out
    again = launch("cancel", job)
    assert (again.code, again.out) == (0, f"{job}  was over already (cancelled)\n")


@pytest.mark.parametrize("forgotten", [False, True])
def test_cancel_of_what_ended_meanwhile(forgotten: bool, pbs, launch, fakes) -> None:
    """Seen by the code that it left, also where the server has forgotten it."""
    job = pbs(ONCE)
    fakes.pbs("schedule")
    if forgotten:
        (fakes.folder / "pbs" / f"{job}.job").unlink()
    done = launch("cancel", job)
    assert (done.code, done.out) == (0, f"{job}  was over already (done)\n"), done.err
    assert f"qdel -- {job}" not in fakes.calls()


def test_cancel_of_what_ends_just_then(pbs, launch, fakes) -> None:
    """qdel fails with 35 then; other codes are failures while the job is there."""
    job = pbs(ONCE)
    fakes.answer("qdel", 35, err=f"qdel: Job has finished {job}\n")
    assert launch("cancel", job).code == 0
    fakes.answer("qdel", 159, err=f"qdel: Unauthorized Request {job}\n")
    done = launch("cancel", job)
    assert (done.code, done.out) == (6, "")
    assert "Unauthorized Request" in done.err


def test_cancel_while_it_runs_and_retry(pbs, launch, fakes, tmp_path: Path, work: Path) -> None:
    job = pbs(ENDLESS)
    fakes.pbs("schedule", "begin")
    until(lambda: runs(tmp_path) == 1)
    busy = launch("retry", job)
    assert (busy.code, "is running; cancel it first" in busy.err) == (2, True)
    assert launch("cancel", job).code == 0
    # The worker stopped in good order, but that it was cancelled is what the user wants to hear.
    assert (work / "out.job" / f"{job}.exit").read_text() == "75\n"
    assert state(launch, job) == "cancelled"
    replace_worker(tmp_path, LEAVE_MANIFEST + ONCE)
    retried = launch("retry", job)
    assert retried.code == 0, retried.err
    assert retried.out.startswith(f"job     {SECOND}\n")
    fakes.pbs("schedule")
    assert launch("status", "out").out.startswith(f"{SECOND}  done")
    assert state(launch, job) == "cancelled"


def replace_worker(tmp_path: Path, running: str) -> None:
    """Replace the worker in job texts that exist already."""
    path = tmp_path / "bin" / "their-python"
    head, _, _ = path.read_text().partition("\nexit\nfi\n")
    path.write_text(f"{head}\nexit\nfi\n{running}\n")


def test_a_job_that_pbs_starts_again(pbs, launch, fakes, tmp_path: Path) -> None:
    job = pbs(ENDLESS)
    fakes.pbs("schedule", "begin")
    until(lambda: runs(tmp_path) == 1)
    fakes.pbs("qrerun", job)
    # The first run has left its code, and still the job is in the queue.
    assert state(launch, job) == "queued"
    fakes.pbs("schedule", "begin")
    until(lambda: runs(tmp_path) == 2)
    assert state(launch, job) == "running"
    assert "This is run number 2." in launch("why", job).out
    assert launch("logs", job).out.count("begun on") == 2
    launch("cancel", job)


def test_a_server_without_history(pbs, launch, fakes) -> None:
    fakes.switch("no-history")
    job = pbs(ONCE)
    # `qstat -x` says nothing there, of no job.
    assert state(launch, job) == "queued"
    assert fakes.calls()[-2:] == [f"qstat -x -f -F json {job}", f"qstat -f -F json {job}"]
    fakes.pbs("schedule")
    assert launch("status", job).out.startswith(f"{job}  done  (exit code 0)")
    assert "was over already" in launch("cancel", job).out


def test_what_a_job_writes_has_the_modes_of_who_submitted(pbs, fakes, work: Path) -> None:
    """PBS gives jobs a umask of 077."""
    pbs(ONCE + '; touch "$4/file"')
    fakes.pbs("schedule")
    assert (work / "out" / "file").stat().st_mode & 0o777 == 0o644
    assert (work / "out").stat().st_mode & 0o777 == 0o755


def test_torque(pbs, launch, fakes, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_PBS", "torque")
    job = pbs("echo streamed; sleep 0.1; exit 4", "--dialect", "torque", "--ngpus", 2)
    assert state(launch, job) == "queued"
    assert fakes.calls()[-1] == f"qstat -f {job}"
    fakes.pbs("schedule")
    assert state(launch, job) == "failed"
    # By the job itself: Torque would show it at the end.
    assert "streamed" in Path("out.job/out.log").read_text()
    assert Path("out.job/out.end").read_text() == ""


def test_then_is_a_job_that_waits(pbs, launch, fakes, work: Path) -> None:
    pbs(ONCE, "--then", "touch after; ls -a ..", "--env", "A=1")
    assert fakes.calls()[-1] == (f"qsub -W depend=afterok:{FIRST} {work}/out.job/out-then.pbs")
    table = launch("jobs").out
    assert re.search(rf"{SECOND} +out-then +queued", table)
    assert f"The job depends on afterok:{FIRST}@pbs-server." in launch("why", SECOND).out
    fakes.pbs("schedule")
    assert (work / "out" / "after").exists()
    assert state(launch, "out-then") == "done"
    assert launch("status", "out").out.startswith(f"{FIRST}  done")


def test_then_does_not_follow_a_failure(pbs, launch, fakes, work: Path) -> None:
    pbs("exit 5", "--then", "touch ../after")
    fakes.pbs("schedule")
    assert [state(launch, job) for job in (FIRST, SECOND)] == ["failed", "cancelled"]
    assert not (work / "after").exists()
    assert "the job it depended on failed" in launch("why", SECOND).out


def test_cancelling_the_merge_cancels_what_waits(pbs, launch, fakes) -> None:
    pbs(ONCE, "--then", "true")
    assert launch("cancel", "out").code == 0
    assert [state(launch, job) for job in (FIRST, SECOND)] == ["cancelled", "cancelled"]
    assert launch("retry", "out").out.count("pbs-server") >= 2
    assert fakes.calls()[-1].startswith("qsub -W depend=afterok:14.pbs-server ")


def test_all_is_submitted_or_nothing(launch, fakes, models, work: Path) -> None:
    fakes.switch("quota")
    done = launch("pbs", "out", *models, "--then", "true")
    assert (done.code, done.out) == (6, "")
    assert done.err == (
        "merge-launch: qsub failed with status 188: qsub: would exceed limit on number of jobs a "
        "user may have\n"
    )
    assert fakes.calls()[-1] == f"qdel -- {FIRST}"
    # The first was submitted, and is known until it has ended.
    assert {path.name for path in (work / "out.job").iterdir()} == {"out.pbs", f"{FIRST}.json"}
    assert state(launch, "out") == "cancelled"


@pytest.mark.parametrize(
    "words", ["status out", "why out", "jobs", "cancel out", "retry out", "pbs new m1 m2"]
)
def test_with_the_server_down(words: str, pbs, launch, fakes, work: Path) -> None:
    pbs(ONCE)
    before = sorted(work.rglob("*"))
    fakes.switch("down")
    done = launch(*words.split())
    assert done.code == 6
    assert "cannot connect to server pbs-server (errno=15010)" in done.err
    assert len(done.err.splitlines()) <= 2
    assert sorted(work.rglob("*")) == before
    fakes.switch("down", on=False)
    assert state(launch, "out") == "queued"


def test_the_table_shows_what_was_last_heard(pbs, launch, fakes) -> None:
    pbs(ONCE)
    fakes.switch("down")
    done = launch("jobs")
    assert done.code == 6
    assert FIRST in done.out
    assert "showing the last known states" in done.err


@pytest.mark.parametrize("words", ["status out", "why out", "cancel out", "retry out"])
def test_without_the_programs_of_pbs(words: str, pbs, launch, fakes, monkeypatch) -> None:
    pbs(ONCE)
    monkeypatch.setenv("PATH", "/nowhere")
    done = launch(*words.split())
    assert done.code == 6
    assert "is not on this machine's PATH" in done.err


# Ranks by their environment, in place of a worker.
RANKS = '[ "$RANK" = 0 ] || exit 5; [ "$WORLD_SIZE" = 2 ] && exit 75'


def test_several_nodes_share_a_merge(launch, fakes, models, work: Path, manifest) -> None:
    words = ["--python", sys.executable, "--progress", "off", "--nodes", 2, "--walltime", "10:00"]
    assert launch("pbs", "out", *models, *words).code == 0
    fakes.pbs("schedule")
    log = launch("logs", "out").out
    assert launch("status", "out").out.startswith(f"{FIRST}  done"), log
    calls = [call for call in fakes.calls() if call.startswith("pbsdsh")]
    assert [call.split()[:3] for call in sorted(calls)] == [
        ["pbsdsh", "-n", "0"],
        ["pbsdsh", "-n", "2"],
    ]
    assert {call.split()[-2:][0] for call in calls} == {"0", "1"}
    assert manifest(work / "out")["counts"]["merged"] == 2
    assert not list((work / "out.job").glob("run.*"))


def test_a_node_that_fails_fails_the_job(launch, fakes, models, python) -> None:
    launch("pbs", "out", *models, "--python", python(running=RANKS), "--nodes", 2)
    fakes.pbs("schedule")
    assert "exit code 5" in launch("status", "out").out


def test_too_few_nodes(launch, fakes, models) -> None:
    path = fakes.folder / "pbs"
    launch("pbs", "out", *models, "--python", sys.executable, "--nodes", 2)
    job = json.loads((path / f"{FIRST}.job").read_text())
    job["text"] = job["text"].replace("select=2", "select=1")
    (path / f"{FIRST}.job").write_text(json.dumps(job))
    # As if the site had put both parts on one node.
    fakes.pbs("schedule")
    assert "the job got 1 nodes, not 2" in launch("logs", "out").out
