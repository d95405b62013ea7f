"""The end of a job, told truly: every way it can end, in every phase, on every backend."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

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
NO_TORCH = "torch is missing in /usr/bin/python3; install it (pip install torch)"
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


@pytest.fixture
def submitted(launch, launch_process, fakes, models, python, monkeypatch):
    """Run a job on a backend to its end; return the ids of its merge and of its --then."""

    def run(backend: str, way: Way) -> list[str]:
        words = ["--python", python(running=way.worker), "--setup", way.setup, "--then", way.then]
        if backend == "local":
            done = launch_process("local", "out", *models, *words, "--detach")
        else:
            monkeypatch.setenv("FAKE_RUN", "1")
            done = launch(backend, "out", *models, *words)
        assert done.code == 0, done.err
        jobs = [line.split()[1] for line in done.out.splitlines() if line[:4] in ("job ", "then")]
        if backend == "local":
            until(Path("out.job", f"{jobs[0]}.exit").exists)
        return jobs

    return run


@pytest.mark.parametrize("backend", ["local", "pbs", "slurm"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_verdicts(way: Way, backend: str, submitted, launch) -> None:
    jobs = submitted(backend, way)
    # --then is a job of its own where jobs can wait for others; of another job it ends none.
    merge, then = jobs[0], jobs[-1]
    of_then = way.name.startswith("then")
    judged = then if of_then else merge
    state = json.loads(launch("status", judged, "--json").out)
    assert (state["state"], state["exit_code"]) == (way.state, way.code)
    why = launch("why", judged).out
    assert way.why in why, why
    assert ("To resume: merge-launch retry" in why) is (way.state != DONE)
    if of_then and merge != then:
        assert json.loads(launch("status", merge, "--json").out)["state"] == DONE
    if not of_then and way.state != DONE and merge != then:
        dropped = launch("status", then).out
        assert "cancelled" in dropped, dropped
        assert not Path("out.job", "out-then.log").exists()
    if way.state != DONE:
        again = launch("retry", judged)
        assert again.code == 0, again.err
