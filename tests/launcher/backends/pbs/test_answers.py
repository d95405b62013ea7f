"""The two forms of qstat's answers tell the same of a job, and what cannot be read is known."""

import json

import pytest

from merge_launch.backends.base import JobState
from merge_launch.backends.pbs.status import parse_qstat, statuses

HEAD = {"timestamp": 1764100000, "pbs_version": "23.06.06", "pbs_server": "s"}


def document(job_id: str = "12.s", **fields: object) -> str:
    """As OpenPBS 23.06 prints it, in the order that it has."""
    job = {"Job_Name": "out", "Job_Owner": "me@login", **fields, "Rerunable": "True"}
    return json.dumps({**HEAD, "Jobs": {job_id: job}}, indent=4)


def text(job_id: str = "12.s", **fields: object) -> str:
    return "\n".join([f"Job Id: {job_id}", *(f"    {k} = {v}" for k, v in fields.items()), ""])


@pytest.mark.parametrize(
    ("fields", "state", "detail"),
    [
        (
            {"job_state": "Q", "comment": "Can Never Run: ngpus"},
            "QUEUED",
            "Q: Can Never Run: ngpus",
        ),
        ({"job_state": "H", "Hold_Types": "s", "depend": "afterok:1.s@s"}, "QUEUED", "H"),
        ({"job_state": "R", "run_count": 2}, "RUNNING", "R"),
        ({"job_state": "B"}, "RUNNING", "B"),
        ({"job_state": "F", "Exit_status": 0}, "DONE", "exit status 0"),
        ({"job_state": "X", "Exit_status": 3}, "FAILED", "exit status 3"),
        ({"job_state": "F", "Exit_status": 75}, "STOPPED", "exit status 75"),
        ({"job_state": "F", "Exit_status": 271}, "CANCELLED", "exit status 271"),
        ({"job_state": "F", "Exit_status": 265}, "CANCELLED", "exit status 265"),
        ({"job_state": "F", "Exit_status": -29}, "STOPPED", "exit status -29"),
        ({"job_state": "F"}, "CANCELLED", "never ran"),
        ({"job_state": "9"}, "UNKNOWN", "9"),
    ],
)
def test_both_forms_tell_the_same(fields: dict[str, object], state: str, detail: str) -> None:
    reported = statuses(document(**fields))
    assert reported == statuses(text(**fields))
    assert reported is not None
    assert (reported["12.s"].state, reported["12.s"].detail) == (JobState[state], detail)


def test_numbers_are_text_again() -> None:
    jobs = parse_qstat(document(run_count=3, Exit_status=-29.0, comment=1e5, Priority=0.5))
    assert jobs is not None
    fields = jobs["12.s"]
    assert [fields[key] for key in ("run_count", "exit_status", "comment", "priority")] == [
        *("3", "-29", "100000", "0.5")
    ]


def test_nothing_is_read_back_from_variables() -> None:
    variables = {"A": 7, "job_state": "F", "Exit_status": 0}
    jobs = parse_qstat(document(Variable_List=variables, job_state="R"))
    assert jobs == {
        "12.s": {"job_name": "out", "job_owner": "me@login", "job_state": "R", "rerunable": "True"}
    }


# Torque answers -x with XML.
XML = "<Data><Job><Job_Id>12.s</Job_Id><job_state>R</job_state></Job></Data>\n"


@pytest.mark.parametrize(
    "answer", ["", "\n", json.dumps(HEAD), json.dumps({**HEAD, "Jobs": {}}), XML]
)
def test_an_answer_of_no_job(answer: str) -> None:
    assert statuses(answer) == {}


def test_a_greeting_in_front() -> None:
    reported = statuses("Welcome to {site}\n" + document("7[].s", job_state="B"))
    assert reported is not None and reported["7[].s"].state is JobState.RUNNING
    reported = statuses("Welcome\n" + text(job_state="R", Variable_List="A=x\n{"))
    assert reported is not None and reported["12.s"].state is JobState.RUNNING


def test_control_characters_in_a_name_or_value() -> None:
    answer = document(job_state="R", comment="@").replace("@", "a\x01\tb\n")
    reported = statuses(answer)
    assert reported is not None and reported["12.s"].state is JobState.RUNNING


@pytest.mark.parametrize(
    "value",
    [
        "007",
        "1.",
        "-",
        '"a\\d"',
        '"say "yes""',
        # It ends the variables, and begins the fields anew.
        '"x"}, "job_state": "F", "Exit_status": 0, "more": {"B": "y"',
        '"x", "A": "y"',
        "[" * 100_000,
        "9" * 5000,
    ],
)
def test_json_that_cannot_be_read(value: str) -> None:
    answer = document(job_state="R", Variable_List={"A": "@"}).replace('"@"', value)
    assert statuses(answer) is None


@pytest.mark.parametrize(
    "answer",
    ['{"Jobs": []}', '{"Jobs": {"12.s": 1}}', "{", document(job_state="R") * 2, document()[:-9]],
)
def test_json_of_another_shape(answer: str) -> None:
    assert statuses(answer) is None
