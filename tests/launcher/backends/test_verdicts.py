"""The end of a job, told truly: every way it can end, in every phase, on every backend."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from merge_launch.tracking import logs
from support.launcher_fixtures import has_ended

BEAKER_ID = "01ABC0"
DONE, FAILED, STOPPED = "done", "failed", "stopped, resumable"


class Way(NamedTuple):
    """A way to end: lines of --setup, worker and --then, and what has to be said of it."""

    name: str
    state: str
    code: int
    why: str = ""
    setup: str = ":"
    worker: str = ":"
    then: str = ":"


def says(code: int, text: str) -> str:
    return f"echo 'merge-worker: {text}' >&2; exit {code}"


SHELL = "kill -{} $$; true"
# The worker is a child of the shell of the job.
PARENT = "kill -{} $PPID; trap 'exit 75' TERM; while :; do sleep 0.05; done"
NO_TORCH = "torch is missing in /usr/bin/python3"
FEW = "the job asked for 2 GPUs, torch 2.9.0 sees 0; the CPU merges"
LACKS = "lacks what the worker needs; see --python and --setup"
SETUP, THEN = "a line of --setup failed", "the merge is done, and --then failed"
WAYS = [
    Way("done", DONE, 0),
    Way("done-without-gpus", DONE, 0, f"The log warns: {FEW}.", worker=f"echo 'warning: {FEW}'"),
    *(Way(f"setup-exits-{n}", FAILED, 1, SETUP, setup=f"exit {n}") for n in (0, 2, 5, 75)),
    Way("setup-fails", FAILED, 1, SETUP, setup="false"),
    Way("setup-not-found", FAILED, 127, SETUP, setup="no-such-program here"),
    Way("setup-syntax", FAILED, 1, SETUP, setup="if true; then"),
    *(Way(f"setup-{n}", STOPPED, 75, setup=SHELL.format(n)) for n in ("TERM", "XCPU", "USR1")),
    Way("worker-bug", FAILED, 1, "a bug in merge-worker", worker="exit 1"),
    Way("worker-recipe", FAILED, 2, "the recipe or an option is wrong", worker=says(2, "r.yml:3")),
    Way("worker-torch", FAILED, 2, LACKS, worker=says(2, NO_TORCH)),
    Way("worker-input", FAILED, 3, "an input is missing", worker="exit 3"),
    Way("worker-output", FAILED, 4, "the output cannot be written", worker="exit 4"),
    Way("worker-nan", FAILED, 5, "NaN or infinity", worker="exit 5"),
    Way("worker-stopped", STOPPED, 75, "resumable", worker="exit 75"),
    Way("worker-killed", FAILED, 137, "lack of memory", worker="kill -KILL $$"),
    Way("worker-crashed", FAILED, 139, "killed by signal 11", worker="kill -SEGV $$"),
    Way("worker-without-manifest", STOPPED, 75, "no finished merge", worker="trap - EXIT; exit 0"),
    *(Way(f"worker-{n}", STOPPED, 75, worker=PARENT.format(n)) for n in ("TERM", "USR1", "USR2")),
    *(Way(f"then-exits-{n}", FAILED, 1, THEN, then=f"exit {n}") for n in (2, 5, 75)),
    Way("then-exits-0", DONE, 0, then="exit 0"),
    Way("then-fails-on-the-way", FAILED, 9, THEN, then="(exit 9); true"),
    Way("then-pipe", FAILED, 1, THEN, then="false | true"),
    *(Way(f"then-{n}", STOPPED, 75, then=SHELL.format(n)) for n in ("TERM", "XCPU")),
]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _soon(monkeypatch) -> None:
    for name in ("POLL_S", "ASK_EVERY_S", "ASK_AGAIN_S"):
        monkeypatch.setattr(logs, name, 0.0)


@pytest.fixture
def submit(launch, fakes, models, python, monkeypatch) -> Callable[..., list[str]]:
    """Submit a job that fakes run to its end at once; return the ids of its merge and --then."""
    monkeypatch.setenv("FAKE_RUN", "1")

    def run(backend: str, way: Way) -> list[str]:
        words = ["--python", python(running=way.worker), "--setup", way.setup, "--then", way.then]
        more = ["--detach"] if backend == "local" else []
        done = launch(backend, "out", *models, *words, *more)
        assert done.code == 0, done.err
        return [line.split()[1] for line in done.out.splitlines() if line[:4] in ("job ", "then")]

    return run


def judged(launch, job: str, way: Way) -> None:
    """The state, the exit code of whoever follows, the reason, and the way on."""
    assert json.loads(launch("status", job, "--json").out)["state"] == way.state
    assert launch("logs", "-f", job).code == way.code
    why = launch("why", job).out
    assert way.why in why, why
    assert ("To resume: merge-launch retry" in why) is (way.state != DONE)
    if way.state != DONE:
        again = launch("retry", job)
        assert again.code == 0, again.err


@pytest.mark.parametrize("backend", ["local", pytest.param("pbs", marks=pytest.mark.slow), "slurm"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_verdicts(way: Way, backend: str, submit, launch) -> None:
    # --then is a job of its own where jobs can wait for others.
    merge, then = (ids := submit(backend, way))[0], ids[-1]
    of_then = way.name.startswith("then")
    if backend == "local":
        until(lambda: has_ended(Path("out.job"), merge))
    if of_then and merge != then:
        assert json.loads(launch("status", merge, "--json").out)["state"] == DONE
    if not of_then and way.state != DONE and merge != then:
        assert "cancelled" in launch("status", then).out
        assert not Path("out.job", "out-then.log").exists()
    judged(launch, then if of_then else merge, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_verdicts_of_beaker(
    way: Way, launch, models, python, work, beaker_server, bare_bash, monkeypatch
) -> None:
    pytest.importorskip("beaker")
    for name, value in beaker_server.environment().items():
        monkeypatch.setenv(name, value)
    words = ["out", *models, "--image", "ada/torch", "--weka", f"bucket:{work}"]
    words += ["--python", python(running=way.worker), "--setup", way.setup, "--then", way.then]
    done = launch("beaker", *words)
    assert done.code == 0, done.err
    (sent,) = beaker_server.requests("POST")
    (task,) = sent["spec"]["tasks"]
    ran = bare_bash(*task["command"][1:], *task["arguments"])
    assert ran.code == way.code
    lines = (ran.out + ran.err).splitlines()
    beaker_server.proceed(BEAKER_ID, 9 if ran.code else 8, {"exit_code": ran.code, "lines": lines})
    judged(launch, BEAKER_ID, way)


# Of what the job itself cannot tell.
KILLS = {
    "cancelled": (signal.SIGTERM, STOPPED, 75, "exit code 75"),
    "killed": (signal.SIGKILL, STOPPED, 75, "ended without an exit code: killed"),
}
WAITS = "echo 'waits here'; sleep 100"


@pytest.mark.parametrize("how", KILLS)
@pytest.mark.parametrize(
    "way",
    [
        Way("setup", "", 0, setup=WAITS),
        Way("merge", "", 0, worker="echo 'waits here'; trap 'exit 75' TERM; sleep 100 & wait"),
        Way("then", "", 0, then=WAITS),
    ],
    ids=lambda way: way.name,
)
def test_killed_from_outside(way: Way, how: str, submit, launch) -> None:
    number, state, code, detail = KILLS[how]
    (job,) = submit("local", way)
    until(lambda: "waits here" in launch("logs", job).out)
    if how == "cancelled":
        assert launch("cancel", job).code == 0
    else:
        os.killpg(int(job.rpartition("-")[2]), number)
    until(lambda: "running" not in launch("status", job).out)
    assert detail in launch("status", job).out
    judged(launch, job, way._replace(state=state, code=code))


def test_success_without_a_merge(submit, launch) -> None:
    """An exit code of 0 proves nothing where OUT was seen to hold no finished merge."""
    (job,) = submit("local", Way("done", DONE, 0))
    until(lambda: has_ended(Path("out.job"), job))
    Path("out", "merge_manifest.json").unlink()
    assert launch("status", job).out.startswith(f"{job}  failed  (exit code 0, no finished merge)")
    assert "OUT holds no finished merge" in launch("why", job).out
    assert launch("logs", "-f", job).code != 0


def test_then_alone_requires_the_merge(submit, launch) -> None:
    """A dropped --then that is submitted again says what it lacks."""
    merge, then = submit("slurm", Way("bad", FAILED, 4, worker="exit 4"))
    assert "cancelled" in launch("status", then).out
    again = launch("retry", then)
    assert again.code == 0
    job = again.out.split()[1]
    assert "failed" in launch("status", job).out
    assert "out holds no finished merge, which --then requires" in launch("why", job).out
    assert launch("retry", merge).code == 0


def test_a_dropped_then_that_slurm_forgot(submit, launch, fakes) -> None:
    merge, then = submit("slurm", Way("bad", FAILED, 4, worker="exit 4"))
    assert launch("status", merge).out.startswith(f"{merge}  failed")
    (fakes.folder / "purged").touch()
    assert f"{then}  cancelled  (never started: {merge} failed)" in launch("status", then).out
