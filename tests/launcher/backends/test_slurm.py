"""Slurm: directives that sbatch takes, its answers, and what became of a job."""

import subprocess
from pathlib import Path

import pytest

from launcher import backends
from launcher.backends import JobState

SLURM = backends.get("slurm")


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"]


def test_golden(make_job, render_job, golden) -> None:
    text = render_job(
        "slurm",
        make_job("runs/out", "m1", "m2", "m3", name="soup"),
        gpus="a100:2",
        cpus=16,
        mem="80g",
        time="1-12:00:00",
        partition="gpu,long",
        account="ab12",
        directive=("--constraint=nvme",),
    )
    golden("slurm.sh", text)


def test_only_what_was_asked_for(make_job, render_job) -> None:
    assert directives(render_job("slurm", make_job())) == [
        "--job-name=out",
        "--nodes=1",
        "--ntasks=1",
        '--output="/home/me/work/out.job/out.log"',
        "--open-mode=append",
    ]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--time", "12h"),
        ("--time", "1-"),
        ("--mem", "80GB"),
        ("--mem", "4GiB"),
        ("--gpus", "two"),
        ("--gpus", "a b:2"),
        ("--partition", "a b"),
        ("--account", "x\ny"),
        ("--directive", "constraint=x"),
        ("--nodes", "3"),
        ("--cpus", "0"),
    ],
)
def test_what_no_directive_may_hold(launch, flag: str, value: str) -> None:
    done = launch("slurm", "out", "m1", "m2", f"{flag}={value}", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert flag in done.err


def test_a_percent_sign_would_be_a_pattern_of_slurm(launch) -> None:
    done = launch("slurm", "100%j/out", "m1", "m2", "--dry-run")
    assert done.code == 2
    assert "100%j" in done.err


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("34\n", "34"),
        ("34;cluster\n", "34"),
        ("a greeting\n34\n", "34"),
        ("Submitted batch job 34\n", None),
        ("", None),
    ],
)
def test_ids(text: str, job_id: str | None) -> None:
    assert SLURM.parse_submit(text) == job_id


@pytest.mark.parametrize(
    ("text", "state", "detail"),
    [
        ("34|PENDING|Resources\n", "QUEUED", "PENDING: Resources"),
        ("34|RUNNING|None\n", "RUNNING", "RUNNING"),
        ("34|COMPLETING|None\n", "RUNNING", "COMPLETING"),
        ("34|COMPLETED|None\n", "DONE", "COMPLETED"),
        ("34|FAILED|NonZeroExitCode\n", "FAILED", "FAILED: NonZeroExitCode"),
        ("34|TIMEOUT|TimeLimit\n", "STOPPED", "TIMEOUT: TimeLimit"),
        ("34|PREEMPTED|None\n", "STOPPED", "PREEMPTED"),
        ("34|CANCELLED|None\n", "CANCELLED", "CANCELLED"),
        ("33|RUNNING|None\n34|OUT_OF_MEMORY|None\n", "FAILED", "OUT_OF_MEMORY"),
        ("34|NEW_STATE|None\n", "UNKNOWN", "NEW_STATE"),
    ],
)
def test_states(text: str, state: str, detail: str) -> None:
    found = SLURM.parse_status("squeue", text)["34"]
    assert (found.state, found.detail) == (JobState[state], detail)


def test_an_answer_without_the_job() -> None:
    assert list(SLURM.parse_status("squeue", "340|RUNNING|None\n")) == ["340"]


def test_the_text_is_bash(make_job, render_job) -> None:
    text = render_job("slurm", make_job("out", "it's", "m\n2", then="echo 'done'"))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_submission(launch, fakes, models, work: Path) -> None:
    done = launch("slurm", "out", *models, "--gpus", 2, "--mem", "80g", "--time", "12:00:00")
    assert done.code == 0, done.err
    assert fakes.calls() == [f"sbatch --parsable {work}/out.job/out.sbatch"]
    assert done.out.startswith("job     34\n")
    assert "cancel  merge-launch cancel 34\n" in done.out
