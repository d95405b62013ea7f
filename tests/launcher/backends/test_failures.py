"""Every command against every failure of PBS and Slurm: code 6, few words, nothing half done."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow


class Cluster(NamedTuple):
    """A scheduler's programs, and what each failure makes them say."""

    submit: str
    ask: tuple[str, ...]
    cancel: str
    down: tuple[int, str]
    stranger: tuple[int, str]
    full: tuple[int, str]


CLUSTERS = {
    "pbs": Cluster(
        "qsub",
        ("qstat",),
        "qdel",
        (162, "Connection refused\n{}: cannot connect to server pbs-server (errno=15010)"),
        (159, "{}: Unauthorized Request"),
        (188, "{}: would exceed limit on number of jobs a user may have"),
    ),
    "slurm": Cluster(
        "sbatch",
        ("squeue", "sacct", "scontrol"),
        "scancel",
        (1, "{}: error: Unable to contact slurm controller (connect failure)"),
        (1, "{}: error: Protocol authentication error"),
        (1, "{}: error: QOSMaxSubmitJobPerUserLimit"),
    ),
}
SUBMITTING = ["BACKEND new m1 m2", "BACKEND new m1 m2 --then ls --follow", "retry out"]
SUBMITTING += [
    "sweep s.yml BACKEND",
    "sweep s.yml BACKEND --array",
    "sweep s.yml BACKEND --one-pass",
]
ASKING = ["jobs", "status out", "why out", "cancel out", "sweep s.yml results"]
TABLES = ("jobs", "sweep s.yml results")


@pytest.fixture(params=list(CLUSTERS))
def backend(request, launch, fakes, models, sweep) -> str:
    """With a job that waits, and one of a sweep that does."""
    assert launch(request.param, "out", *models).code == 0
    return str(request.param)


@pytest.fixture
def fails(backend: str, fakes, monkeypatch) -> Callable[[str], str]:
    """Brings a failure about; the words that a user has to see."""

    def begin(failure: str) -> str:
        cluster = CLUSTERS[backend]
        if failure == "missing":
            monkeypatch.setenv("PATH", "/nowhere")
            return "is not on this machine's PATH"
        status, words = getattr(cluster, failure)
        names = [cluster.submit]
        if failure != "full":
            names += [*cluster.ask, cluster.cancel]
        for name in names:
            fakes.answer(name, status, err=words.format(name) + "\n")
        return str(words.splitlines()[-1].partition(": ")[2])

    return begin


def everything(work: Path) -> dict[str, bytes]:
    """Files of the user's, those of the state folder too."""
    paths = [path for place in (work, work.parent / "home") for path in place.rglob("*")]
    kept = [path for path in paths if ".cache" not in path.parts]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in kept}


def over(backend: str, fakes) -> None:
    """Follow up after a user has cancelled the job that waited."""
    if backend == "pbs":
        fakes.pbs("qdel", "12.pbs-server")
    else:
        (fakes.folder / "34.state").write_text("CANCELLED|None|N/A\n")


@pytest.mark.parametrize("failure", ["down", "stranger", "missing"])
@pytest.mark.parametrize("words", ASKING)
def test_asking(words: str, failure: str, backend, fails, launch, work: Path) -> None:
    if words.startswith("sweep"):
        assert launch("sweep", "s.yml", backend).code == 0
    message = fails(failure)
    before = everything(work)
    done = launch(*words.split())
    assert (done.code, message in done.err) == (6, True), done
    assert len(done.err.splitlines()) <= 2
    # A table shows what was last seen.
    assert bool(done.out) is (words in TABLES)
    assert everything(work) == before


@pytest.mark.parametrize("failure", ["down", "stranger", "full", "missing"])
@pytest.mark.parametrize("words", SUBMITTING)
def test_submitting(words: str, failure: str, backend, fails, launch, work: Path, fakes) -> None:
    over(backend, fakes)
    assert "cancelled" in launch("status", "out").out
    message = fails(failure)
    before, asked = everything(work), len(fakes.calls())
    done = launch(*words.replace("BACKEND", backend).split())
    assert (done.code, done.out, message in done.err) == (6, "", True), done
    assert len(done.err.splitlines()) <= 2, done.err
    assert everything(work) == before
    # One try, and none that could have made a second job.
    tries = [call for call in fakes.calls()[asked:] if call.split()[0] == CLUSTERS[backend].submit]
    assert len(tries) == (failure != "missing")


def test_a_job_that_is_over_needs_nobody(backend, fails, launch, fakes) -> None:
    over(backend, fakes)
    assert "cancelled" in launch("status", "out").out
    fails("down")
    for words in ("status out", "why out", "jobs", "logs out", "cancel out"):
        done = launch(*words.split())
        assert done.code == 0, (words, done.err)


def test_local_without_bash(launch, models, work: Path, monkeypatch) -> None:
    before = everything(work)
    monkeypatch.setenv("PATH", "/nowhere")
    for words in ("local out m1 m2", "local out m1 m2 --detach"):
        done = launch(*words.split())
        assert (done.code, done.out) == (6, "")
        assert "bash is not on this machine's PATH" in done.err
        assert everything(work) == before
