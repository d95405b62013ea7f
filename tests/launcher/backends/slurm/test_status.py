"""Statuses from the output of squeue, sacct and scontrol."""

import time

import pytest

from merge_launch import backends
from merge_launch.backends.base import JobState

SLURM = backends.get("slurm")


def rows(text: str) -> str:
    """Add to each line what tells whose job it is."""
    return "".join(f"{line}|2026-01-02T03:04:05|1000|out\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "state", "detail"),
    [
        ("34|PENDING|Resources|N/A\n", "QUEUED", "PENDING: Resources"),
        ("34|RUNNING|None|2026-01-02T03:04:05\n", "RUNNING", "RUNNING"),
        ("34|COMPLETING|None|N/A\n", "RUNNING", "COMPLETING"),
        ("34|COMPLETED|None|N/A\n", "DONE", "COMPLETED"),
        ("34|FAILED|NonZeroExitCode|N/A\n", "FAILED", "FAILED: NonZeroExitCode"),
        ("34|FAILED|JobLaunchFailure|N/A\n", "FAILED", "FAILED: JobLaunchFailure"),
        ("34|TIMEOUT|TimeLimit|N/A\n", "STOPPED", "TIMEOUT: TimeLimit"),
        ("34|PREEMPTED|None|N/A\n", "STOPPED", "PREEMPTED"),
        ("34|NODE_FAIL|NodeDown|N/A\n", "STOPPED", "NODE_FAIL: NodeDown"),
        ("34|CANCELLED|None|N/A\n", "CANCELLED", "CANCELLED"),
        ("33|RUNNING|None|N/A\n34|OUT_OF_MEMORY|None|N/A\n", "FAILED", "OUT_OF_MEMORY"),
        ("34|NEW_STATE|None|N/A\n", "UNKNOWN", "NEW_STATE"),
    ],
)
def test_states(text: str, state: str, detail: str) -> None:
    status = SLURM.parse_status("squeue", rows(text))["34"]
    assert (status.state, status.detail) == (JobState[state], detail)


def test_members_of_arrays_are_jobs() -> None:
    text = "34_1|PENDING|JobArrayTaskLimit|N/A\n34_0|RUNNING|None|2026-01-02T03:04:05\n"
    reported = SLURM.parse_status("squeue", rows(text))
    assert {job: status.state.name for job, status in reported.items()} == {
        "34_1": "QUEUED",
        "34_0": "RUNNING",
    }
    # Without it the waiting members are one line, 34_[1-9].
    assert "--array" in SLURM.status_argv("squeue", ["34_0"], "")
    waiting = SLURM.parse_status("sacct", rows("34_[1-9%2]|PENDING|0:0|None\n34_0|RUNNING|0:0|\n"))
    assert {job: status.state.name for job, status in waiting.items()} == {
        "34": "QUEUED",
        "34_0": "RUNNING",
    }
    assert (SLURM.array_of("34_7"), SLURM.array_of("34")) == ("34", "")


def test_whose_job_it_is() -> None:
    (status,) = SLURM.parse_status(
        "squeue", "3|RUNNING|None|N/A|2026-01-02T03:04:05|7|a|b\n"
    ).values()
    assert (status.origin.name, status.origin.user) == ("a|b", "7")
    assert time.ctime(status.origin.submitted_s) == "Fri Jan  2 03:04:05 2026"
    (status,) = SLURM.parse_status("squeue", "3|RUNNING|None|N/A|N/A|7|x\n").values()
    assert status.origin.submitted_s is None


@pytest.mark.parametrize(
    ("text", "state", "detail", "reason"),
    [
        ("1|FAILED|4:0|NonZeroExitCode\n", "FAILED", "FAILED: NonZeroExitCode", "code 4"),
        ("1|CANCELLED by 1000|0:15|None\n", "CANCELLED", "CANCELLED by 1000", "by 1000"),
        ("1|TIMEOUT|0:0|TimeLimit\n", "STOPPED", "TIMEOUT: TimeLimit", "time limit"),
        ("1|OUT_OF_MEMORY|0:125|OutOfMemory\n", "FAILED", "OUT_OF_MEMORY: OutOfMemory", "--mem"),
    ],
)
def test_states_of_the_database(text: str, state: str, detail: str, reason: str) -> None:
    status = SLURM.parse_status("sacct", rows(text))["1"]
    assert (status.state, status.detail) == (JobState[state], detail)
    assert any(reason in sentence for sentence in status.reasons)


@pytest.mark.parametrize("text", ["", "garbage\n", "a|b\n", "1|2|3|4|5\n"])
def test_answers_that_are_none(text: str) -> None:
    assert SLURM.parse_status("squeue", text) == {}
    assert SLURM.parse_status("sacct", text) == {}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "nodes to become free"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "down, drained or reserved"),
        ("QOSMaxJobsPerUserLimit", "Exceeds a QOS limit"),
        ("AssocGrpGRES", "account together"),
        ("MaxMemPerLimit", "Exceeds a limit, or is waiting"),
        ("RaisedSignal:53(Real-time_signal_19)", "A signal ended"),
        ("SomethingNew", "Slurm's reason: SomethingNew"),
    ],
)
def test_reasons_in_words(reason: str, words: str) -> None:
    text = rows(f"1|PENDING|{reason}|2026-01-02T03:04:05\n")
    status = SLURM.parse_status("squeue", text)["1"]
    assert words in status.reasons[0]
    assert status.reasons[-1] == "Slurm expects the job to start at 2026-01-02T03:04:05."


SHOWN = (
    "JobId=10 JobName=c UserId=me(1) JobState={state} Reason=None Dependency={waits} Requeue=1 "
    "Restarts={again} BatchFlag=1 ExitCode={ended} RunTime=00:01:02 TimeLimit=00:10:00 "
    "NodeList=n1 BatchHost=n1 TRES=cpu=1,mem=100M"
)


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        (("RUNNING", "(null)", "1", "0:0"), ["Requeued 1 time.", "of 00:10:00 on"]),
        (("PENDING", "afterok:9(unfulfilled)", "0", "0:0"), ["depends on afterok:9(unfulfilled)"]),
        (("PENDING", "(null)", "2", "75:0"), ["Requeued 2 times."]),
        (("FAILED", "(null)", "0", "3:0"), ["ended with code 3"]),
        (("TIMEOUT", "(null)", "0", "0:9"), ["Signal 9 killed"]),
        (("COMPLETED", "(null)", "0", "0:0"), []),
    ],
)
def test_what_scontrol_adds(values: tuple[str, ...], sentences: list[str]) -> None:
    state, waits, again, ended = values
    text = SHOWN.format(state=state, waits=waits, again=again, ended=ended)
    reasons = SLURM.parse_why(text)
    assert len(reasons) == len(sentences)
    assert all(words in reason for words, reason in zip(sentences, reasons, strict=True))
