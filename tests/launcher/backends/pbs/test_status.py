"""Statuses from the output of qstat."""

import pytest

from merge_launch import backends
from merge_launch.backends.base import JobState
from merge_launch.backends.pbs.status import statuses

PBS = backends.get("pbs")


def record(state: str, *more: str, job_id: str = "12.s") -> str:
    head = [f"Job Id: {job_id}", "    Job_Name = out", f"    job_state = {state}"]
    return "\n".join([*head, *more, ""])


@pytest.mark.parametrize(
    ("text", "state", "detail"),
    [
        (
            record("Q", "    comment = Can Never Run: ngpus (R: 9", "\t9 A: 2)"),
            "QUEUED",
            "(R: 99 A: 2)",
        ),
        (record("H"), "QUEUED", "H"),
        (record("W"), "QUEUED", "W"),
        (record("R"), "RUNNING", "R"),
        (record("S"), "RUNNING", "S"),
        (record("E"), "RUNNING", "E"),
        (record("F", "    Exit_status = 0"), "DONE", "0"),
        (record("C", "    exit_status = 3"), "FAILED", "3"),
        (record("F", "    Exit_status = 75"), "STOPPED", "75"),
        (record("F", "    Exit_status = 137"), "FAILED", "137"),
        (record("F", "    Exit_status = 254"), "FAILED", "254"),
        (record("F", "    Exit_status = 271"), "CANCELLED", "271"),
        (record("F", "    Exit_status = 265"), "CANCELLED", "265"),
        (record("F", "    Exit_status = 266"), "FAILED", "266"),
        (record("F", "    Exit_status = -29"), "STOPPED", "-29"),
        (record("F", "    Exit_status = -20"), "STOPPED", "-20"),
        (record("F", "    Exit_status = -27"), "FAILED", "-27"),
        (record("F", "    Exit_status = -1"), "FAILED", "-1"),
        (record("X", "    Exit_status = 0"), "DONE", "0"),
        (record("F"), "CANCELLED", "never ran"),
        (record("9"), "UNKNOWN", "9"),
    ],
)
def test_states(text: str, state: str, detail: str) -> None:
    status = PBS.parse_status("qstat", text)["12.s"]
    assert status.state is JobState[state]
    assert detail in status.detail


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["R", "    run_count = 3"], "This is run number 3."),
        (["S"], "The job is suspended in favor of a higher-priority job."),
        (
            ["H", "    Hold_Types = s", "    depend = afterok:1.s@s"],
            "The job depends on afterok:1.s@s.",
        ),
        (["H", "    Hold_Types = u"], "Held by: the user."),
        # After 21 tries, where the folder of its log has gone.
        (
            ["H", "    Hold_Types = s", "    comment = job held, too many failed attempts to run"],
            "PBS says: job held, too many failed attempts to run.",
        ),
        (["F", "    Exit_status = -20"], "The node of the job was lost."),
        (["F", "    Exit_status = -3"], "PBS could not start the job and will try again."),
        (["Q", "    comment = Not Running: Queue full"], "PBS says: Not Running: Queue full."),
        (["F", "    Exit_status = -29"], "The job reached its walltime."),
        (["F", "    Exit_status = -27"], "The job used more memory than requested (--mem)."),
        (["F", "    Exit_status = 266"], "Signal 10 killed the job."),
        (["F"], "The job never ran: deleted, or the job it depended on failed."),
        (["9"], "PBS reports the state '9'."),
    ],
)
def test_sentences(more: list[str], sentence: str) -> None:
    assert sentence in statuses(record(*more))["12.s"].reasons


def test_one_answer_for_many_jobs() -> None:
    text = record("R") + "\n" + record("F", "    Exit_status = 3", job_id="7[].s")
    reported = statuses(text)
    assert {key: each.state for key, each in reported.items()} == {
        "12.s": JobState.RUNNING,
        "7[].s": JobState.FAILED,
    }


def test_variables_of_the_user_are_no_fields() -> None:
    text = record("R", "    Variable_List = A=1,B=x\n    job_state = F,C=007\n    Exit_status = 0")
    assert statuses(text)["12.s"].state is JobState.RUNNING


def test_an_answer_without_the_job() -> None:
    # What `qstat -x` prints where the server keeps no history.
    assert PBS.parse_status("qstat", "") == {}


def in_front_of_slurm(state: str, *more: str) -> str:
    """As the qstat of slurm-wlm-torque prints it."""
    fields = ["Job_Name = out", f"job_state = {state}", "queue = debug", *more]
    return "\n\t".join(["Job Id:\t12", *fields, "Resource_List.ncpus = 1"]) + "\n\n"


def test_a_qstat_in_front_of_slurm() -> None:
    reported = statuses(in_front_of_slurm("R", "exec_host = n1/1") + in_front_of_slurm("Q"))
    assert reported["12"].state is JobState.QUEUED
    assert "Queue: debug." in reported["12"].reasons
    # It has no word on the end of what ran: then the code that the job left tells.
    assert statuses(in_front_of_slurm("C", "exec_host = n1/1")) == {}
    assert statuses(in_front_of_slurm("C"))["12"].state is JobState.CANCELLED
