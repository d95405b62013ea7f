"""Verdicts on a real Slurm: what kills a job outside the worker is told as what it is."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from support.real_slurm import until

pytestmark = pytest.mark.slow

ENDLESS = 'echo "waits here"; sleep 600'
WAITS = "trap 'exit 75' TERM; echo 'waits here'; while :; do sleep 0.1; done"


class Phase(NamedTuple):
    """Where a job waits for what comes: in a line of --setup, in the worker, or in --then."""

    setup: str = ":"
    worker: str = ":"
    then: str | None = None


PHASES = {"setup": Phase(setup=ENDLESS), "merge": Phase(worker=WAITS), "then": Phase(then=ENDLESS)}


@pytest.fixture
def submit(launch, models, python) -> Callable[..., str]:
    """Submit a job that makes no real merge; return the id of the job that is to be judged."""

    def run(phase: Phase, *words: str) -> str:
        then = () if phase.then is None else ("--then", phase.then)
        words = ("--mem", "300M", "--cpus", "1", "--requeue", "0", *words, *then)
        program = python(running=phase.worker)
        done = launch("slurm", "out", *models, "--python", program, "--setup", phase.setup, *words)
        assert done.code == 0, done.err
        return re.findall(r"^(?:job|then) +(\d+)", done.out, re.MULTILINE)[-1]

    return run


def waits() -> bool:
    logs = Path("out.job").glob("*.log")
    return any("waits here" in log.read_text() for log in logs)


def judged(launch, job: str, state: str, code: int, why: str) -> None:
    assert launch("status", job).out.startswith(f"{job}  {state}")
    assert launch("logs", "-f", job).code == code
    told = launch("why", job).out
    assert why in told and f"To resume: merge-launch retry {job}" in told, told
    assert launch("retry", job).code == 0


@pytest.mark.parametrize("phase", PHASES)
def test_cancelled(phase: str, slurm, launch, submit) -> None:
    job = submit(PHASES[phase])
    until(waits, "the job to wait", 120)
    assert launch("cancel", job).code == 0
    slurm.wait(job, "CANCELLED")
    judged(launch, job, "cancelled", 75, "The job was cancelled.")


@pytest.mark.parametrize("phase", PHASES)
def test_the_time_limit(phase: str, slurm, launch, submit) -> None:
    job = submit(PHASES[phase], "--time", "1", "--deadline", "1h")
    slurm.wait(job, "TIMEOUT", "FAILED", timeout_s=300)
    judged(launch, job, "stopped, resumable", 75, "The job was stopped before its end")


@pytest.mark.parametrize("phase", PHASES)
def test_a_node_that_goes_down(phase: str, slurm, launch, submit) -> None:
    job = submit(PHASES[phase])
    until(waits, "the job to wait", 120)
    node = slurm.field(job, "NodeList")
    slurm.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=tests")
    try:
        slurm.wait(job, "NODE_FAIL")
        judged(launch, job, "stopped, resumable", 75, "The job was stopped before its end")
    finally:
        with contextlib.suppress(AssertionError):  # it may be back by itself
            slurm.ask("scontrol", "update", f"nodename={node}", "state=resume")


@pytest.mark.parametrize(
    ("line", "code", "why"),
    [
        ("exit 0", 1, "a line of --setup failed"),
        ("exec true", 6, "OUT holds no finished merge"),
        ("kill -KILL $$; sleep 9", 6, "killed the job"),
        ("no-such-program", 127, "--setup ended with exit code 127: no-such-program"),
    ],
)
def test_a_line_of_setup(line: str, code: int, why: str, slurm, launch, submit) -> None:
    job = submit(Phase(setup=line))
    slurm.wait(job, "FAILED", "COMPLETED")
    judged(launch, job, "failed", code, why)
    assert not Path("out").exists()
