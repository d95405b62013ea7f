"""Asking PBS for JSON, with its quirks, and for text where that is of no use; never often."""

import json
import subprocess

import pytest

FIRST, SECOND = "12.pbs-server", "13.pbs-server"
JSON, TEXT = "qstat -x -f -F json", "qstat -x -f"
RUNNING_JSON, RUNNING_TEXT = "qstat -f -F json", "qstat -f"


@pytest.fixture
def submitted(launch, fakes, models) -> int:
    """Two jobs in the queue; the calls that this took."""
    for out in ("out", "b"):
        assert launch("pbs", out, *models).code == 0
    return len(fakes.calls())


@pytest.fixture
def variables(fakes):
    """Gives all jobs these."""

    def give(*pairs: str) -> None:
        (fakes.folder / "pbs" / "variables").write_text("\0".join(pairs))

    return give


def states(launch) -> dict[str, str]:
    done = launch("jobs", "--json")
    return {row["job"]: row["state"] for row in json.loads(done.out)}


BOTH_QUEUED = {FIRST: "queued", SECOND: "queued"}


def test_one_question_for_all(submitted: int, launch, fakes) -> None:
    assert states(launch) == BOTH_QUEUED
    assert fakes.calls()[submitted:] == [f"{JSON} {SECOND} {FIRST}"]


def test_variables_come_back_as_other_values(submitted: int, launch, fakes, variables) -> None:
    variables("A1=007", "A2=1e5", "A3=-1.50", "A4=1.", "A5=true", r"A6=a\b", "job_state=F")
    argv = [*JSON.split(), FIRST]
    answer = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    listed = json.loads(answer)["Jobs"][FIRST]["Variable_List"]
    assert [listed[f"A{n}"] for n in range(1, 7)] == [7, 100000, -1.5, 1, True, r"a\\b"]
    before = len(fakes.calls())
    assert states(launch) == BOTH_QUEUED
    assert len(fakes.calls()) == before + 1


def test_the_found_ones_are_told_beside_an_unknown_one(submitted: int, launch, fakes) -> None:
    """With status 153; and the unknown one is no failure of the command."""
    (fakes.folder / "pbs" / f"{FIRST}.job").unlink()
    assert states(launch) == {FIRST: "unknown", SECOND: "queued"}
    assert fakes.calls()[submitted:] == [f"{JSON} {SECOND} {FIRST}", f"{RUNNING_JSON} {FIRST}"]


def test_no_job_matched(submitted: int, launch, fakes) -> None:
    """There is no list of jobs then, which is an answer: text would say no more."""
    for job in (FIRST, SECOND):
        (fakes.folder / "pbs" / f"{job}.job").unlink()
    assert states(launch) == {FIRST: "unknown", SECOND: "unknown"}
    assert [call.split(" 1")[0] for call in fakes.calls()[submitted:]] == [JSON, RUNNING_JSON]


def test_history_off(submitted: int, launch, fakes) -> None:
    """Status 0 and nothing printed, also of jobs that run."""
    fakes.switch("no-history")
    assert states(launch) == BOTH_QUEUED
    assert [call.split(" 1")[0] for call in fakes.calls()[submitted:]] == [JSON, RUNNING_JSON]


def test_server_down(submitted: int, launch, fakes) -> None:
    """Another form would not help."""
    fakes.switch("down")
    done = launch("jobs")
    assert done.code == 6
    assert "qstat failed with status 255: Connection refused" in done.err
    assert [call.split(" 1")[0] for call in fakes.calls()[submitted:]] == [JSON, RUNNING_JSON]


def test_codes_are_numbers(launch, fakes, models, python) -> None:
    launch("pbs", "out", *models, "--python", python(running='rm "${3%/*}"/*.exit; kill -9 $$'))
    fakes.pbs("schedule")
    path = fakes.folder / "pbs" / f"{FIRST}.job"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": -29, "runs": 3}))
    for left in path.parent.parent.parent.glob("work/out.job/*.exit"):
        left.unlink()
    assert "stopped, resumable  (exit status -29" in launch("status", FIRST).out
    assert "The job reached its walltime." in launch("why", FIRST).out


def test_a_pbs_without_json(submitted: int, launch, fakes) -> None:
    """PBS Pro 13: what it cannot print is tried once in a command, not once for each question."""
    fakes.switch("no-json")
    assert states(launch) == BOTH_QUEUED
    assert fakes.calls()[submitted:] == [f"{JSON} {SECOND} {FIRST}", f"{TEXT} {SECOND} {FIRST}"]
    fakes.switch("no-history")
    before = len(fakes.calls())
    assert states(launch) == BOTH_QUEUED
    asked = [call.split(" 1")[0] for call in fakes.calls()[before:]]
    assert asked == [JSON, TEXT, RUNNING_TEXT]


@pytest.mark.parametrize(
    "pair",
    ["A1=007", "A1=1.", r"A1=a\d", 'A1=say "yes"', 'A1=x"}, "job_state": "F", "B": {"C": "y'],
)
def test_json_that_is_none(pair: str, submitted: int, launch, fakes, variables) -> None:
    """Versions of PBS that escape nothing: one odd variable spoils the answer for all jobs."""
    variables(pair)
    fakes.switch("raw-json")
    assert states(launch) == BOTH_QUEUED
    assert fakes.calls()[submitted:] == [f"{JSON} {SECOND} {FIRST}", f"{TEXT} {SECOND} {FIRST}"]


def test_a_line_end_in_a_variable_is_no_reason_to_ask_again(
    submitted: int, launch, fakes, variables
) -> None:
    variables("A1=x\n    job_state = F\n    Exit_status = 0")
    fakes.switch("raw-json")
    assert states(launch) == BOTH_QUEUED
    assert fakes.calls()[submitted:] == [f"{JSON} {SECOND} {FIRST}"]


def test_a_qstat_that_knows_neither_option(submitted: int, launch, fakes, monkeypatch) -> None:
    """Torque, or what stands in front of Slurm, where another dialect was named."""
    monkeypatch.setenv("FAKE_PBS", "torque")
    assert states(launch) == BOTH_QUEUED
    asked = [call.split(" 1")[0] for call in fakes.calls()[submitted:]]
    assert asked == [JSON, TEXT, RUNNING_TEXT]
