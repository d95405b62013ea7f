"""Beaker: following up by the real client, through preemptions and on to a verdict."""

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("beaker")

WORDS = [
    *["/weka/bucket/out", "/weka/bucket/m1", "/weka/bucket/m2"],
    *["--image", "ada/torch", "--weka", "bucket", "--name", "soup"],
]
ID = "01ABC0"
QUEUED, RUNNING, CANCELED, SUCCEEDED, FAILED = 2, 4, 7, 8, 9
PREEMPTED, MANUAL, TIMEOUT = 1, 4, 5


@pytest.fixture(autouse=True)
def _of_the_server_here(beaker_server, monkeypatch) -> None:
    for name, value in beaker_server.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def job(launch, beaker_server) -> Iterator[str]:
    """One that was submitted, in this process: its client trusts the server of this session."""
    done = launch("beaker", *WORDS)
    assert done.code == 0, done.err
    yield ID


@pytest.mark.parametrize(
    ("status", "jobs", "words"),
    [
        (1, [], "queued  (submitted)"),
        (QUEUED, [{}], "queued  (queued)"),
        (3, [{}], "queued  (initializing)"),
        (RUNNING, [{}], "running  (running)"),
        (RUNNING, [{"canceled_code": PREEMPTED}, {}], "running  (running)"),
        (SUCCEEDED, [{"exit_code": 0}], "done  (succeeded, exit code 0)"),
        (FAILED, [{"exit_code": 3}], "failed  (failed, exit code 3)"),
        (FAILED, [{"exit_code": 75}], "stopped, resumable  (failed, exit code 75)"),
        (CANCELED, [{"canceled_code": MANUAL}], "cancelled  (canceled, cancelled by a user)"),
        (CANCELED, [{"canceled_code": TIMEOUT}], "stopped, resumable  (canceled, time limit"),
        (FAILED, [{"canceled_code": PREEMPTED}], "stopped, resumable  (failed, preempted"),
        (CANCELED, [{"canceled_code": 99}], "stopped, resumable  (canceled, cancelation code 99)"),
        (42, [{}], "unknown  (status 42)"),
    ],
)
def test_states(launch, job, beaker_server, status, jobs, words: str) -> None:
    beaker_server.proceed(job, status, *jobs)
    done = launch("status", "soup")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{ID}  {words}")


def test_replicas_speak_with_the_voice_of_who_failed(launch, job, beaker_server) -> None:
    ranks = [{"size": 3, "rank": rank} for rank in range(3)]
    ends = [{"exit_code": 0}, {"exit_code": 4}, {"exit_code": 0}]
    beaker_server.proceed(job, FAILED, *(a | b for a, b in zip(ranks, ends, strict=True)))
    assert launch("status", job).out.startswith(f"{ID}  failed  (failed, exit code 4)")


def test_all_jobs_are_asked_for_at_once(launch, beaker_server) -> None:
    for _ in range(3):
        assert launch("beaker", *WORDS[:-2]).code == 0
    beaker_server.proceed("01ABC1", SUCCEEDED, {"exit_code": 0})
    (beaker_server.folder / "requests").unlink()
    done = launch("jobs")
    assert done.code == 0, done.err
    states = {line.split()[0]: line.split()[2] for line in done.out.splitlines()[1:]}
    assert states == {"01ABC0": "queued", "01ABC1": "done", "01ABC2": "queued"}
    assert [each["request"] for each in beaker_server.requests()].count("GetWorkload") == 3
    assert len(beaker_server.requests("ResolveOrganizationName")) == 1


def test_the_log_of_all_runs(launch, job, beaker_server) -> None:
    first = {"lines": ["one", "b\u00e4d \x1b[31mred"], "canceled_code": PREEMPTED}
    beaker_server.proceed(job, RUNNING, first, {"lines": ["two"]})
    done = launch("logs", job)
    assert (done.code, done.out) == (0, "one\nb\u00e4d red\ntwo\n")


def test_the_thirtieth_preemption(launch, job, beaker_server) -> None:
    """Runs and events come in pages."""
    earlier = [{"lines": [f"run {n}"], "canceled_code": PREEMPTED} for n in range(30)]
    events = [["Scheduled", f"event {n}"] for n in range(45)]
    beaker_server.proceed(job, RUNNING, *earlier, {"lines": ["run 30"], "events": events})
    done = launch("logs", job)
    assert (done.code, done.out.splitlines()) == (0, [f"run {n}" for n in range(31)])
    why = launch("why", job)
    assert "Started 31 times (preempted by the system)." in why.out
    assert "event 0\n" in why.out


def test_only_new_pages_are_read_while_a_log_is_followed(launch, job, beaker_server) -> None:
    from merge_launch.backends.beaker.client import connected
    from merge_launch.backends.beaker.log import Reader

    earlier = [{"lines": [f"run {n}"], "canceled_code": PREEMPTED} for n in range(70)]
    beaker_server.proceed(job, RUNNING, *earlier, {"lines": ["run 70"]})
    reader = Reader(job)
    with connected() as client:
        assert len(list(reader.read_new(client))) == 71
        asked = len(beaker_server.requests("ListJobs"))
        assert asked == 4
        assert list(reader.read_new(client)) == []
        assert len(beaker_server.requests("ListJobs")) == asked + 1


@pytest.mark.parametrize(
    ("status", "run", "code"),
    [
        (SUCCEEDED, {"exit_code": 0}, 0),
        (FAILED, {"exit_code": 3}, 3),
        (FAILED, {"exit_code": 75}, 75),
        (CANCELED, {"canceled_code": MANUAL}, 75),
        (CANCELED, {"canceled_code": TIMEOUT}, 75),
    ],
)
def test_following_ends_with_the_code_of_the_job(
    launch, job, beaker_server, status: int, run: dict[str, int], code: int
) -> None:
    beaker_server.proceed(job, status, {"lines": ["begun"], **run})
    done = launch("logs", "-f", job)
    assert (done.code, done.out) == (code, "begun\n"), done.err


def test_a_stream_that_breaks_goes_on_where_it_was(launch, job, beaker_server, monkeypatch) -> None:
    monkeypatch.setattr("merge_launch.backends.beaker.log.POLL_S", 0.01)
    lines = ["one", "two", "three"]
    beaker_server.proceed(job, SUCCEEDED, {"lines": lines, "cut": 1, "exit_code": 0})
    done = launch("logs", "-f", job)
    assert (done.code, done.out.splitlines()) == (0, lines), done.err


@pytest.mark.slow
def test_following_through_a_preemption(launch_process, job, beaker_server) -> None:
    preempted = {"lines": ["begun"], "canceled_code": PREEMPTED}
    course = [
        (QUEUED, []),
        (RUNNING, [{"lines": ["begun"]}]),
        (QUEUED, [preempted]),
        (RUNNING, [preempted, {"lines": ["continuing"]}]),
        (SUCCEEDED, [preempted, {"lines": ["continuing", "merged"], "exit_code": 0}]),
    ]

    def proceed() -> None:
        for status, jobs in course:
            beaker_server.proceed(job, status, *jobs)
            seen = len(beaker_server.requests("GetWorkload"))
            limit = time.monotonic() + 120
            while len(beaker_server.requests("GetWorkload")) < seen + 2:
                assert time.monotonic() < limit
                time.sleep(0.05)

    life = threading.Thread(target=proceed, daemon=True)
    life.start()
    done = launch_process("logs", "-f", job)
    assert (done.code, done.out.splitlines()) == (0, ["begun", "continuing", "merged"]), done.err
    assert launch_process("status", job).out.startswith(f"{ID}  done")


def test_why_it_waits(launch, job, beaker_server) -> None:
    waiting = {"waiting": "no cluster has 9 free slots", "events": []}
    waiting["events"] = [["Scheduling", "looked for a node"], ["Created", "the job was made"]]
    beaker_server.proceed(job, QUEUED, {"canceled_code": PREEMPTED}, waiting)
    done = launch("why", job)
    assert done.code == 0, done.err
    assert "no cluster has 9 free slots" in done.out
    assert "Started 2 times (preempted by the system)." in done.out
    *_, earlier, later = [line for line in done.out.splitlines() if " UTC " in line]
    assert "Created (2 times): the job was made" in earlier
    assert later.endswith("22:13:20 UTC  Scheduling: looked for a node")


def test_why_it_failed(launch, job, beaker_server) -> None:
    run = {"lines": ["fine", "merge-worker: m2: missing"], "exit_code": 3, "message": "exited"}
    beaker_server.proceed(job, FAILED, run)
    done = launch("why", job)
    assert done.code == 0, done.err
    assert "exited" in done.out and "merge-worker: m2: missing" in done.out
    assert "Exit code 3: an input is missing" in done.out


def test_cancel(launch, job, beaker_server) -> None:
    done = launch("cancel", job)
    assert done.code == 0, done.err
    (asked,) = beaker_server.requests("CancelWorkloads")
    assert asked["ids"] == [ID]


def test_retry_sends_the_same_text_as_another_experiment(launch, job, beaker_server) -> None:
    beaker_server.proceed(job, FAILED, {"exit_code": 75})
    done = launch("retry", job)
    assert done.code == 0, done.err
    assert done.out.startswith("job     01ABC1\n")
    first, second = beaker_server.requests("POST")
    assert first["spec"] == second["spec"]
    assert first["path"] + "-" == second["path"][:-8]


def test_a_job_that_the_server_has_forgotten(launch, job, beaker_server) -> None:
    (beaker_server.folder / "state.json").write_text("{}")
    assert launch("status", job).out.startswith(f"{ID}  unknown")
    for words in (["logs", job], ["cancel", job]):
        done = launch(*words)
        assert (done.code, done.out) == (6, "")
        assert f"job {ID} not found" in done.err
