"""Beaker: every command against every failure: code 6, one line, nothing half done."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("beaker")

SWEEP = """
recipe:
  merge_method: linear
  models: [{model: /w/m1, parameters: {weight: 1}}, {model: /w/m2, parameters: {weight: 1}}]
out: /w/runs
name: "w{weight}"
grid: {models.1.parameters.weight: [1, 3]}
"""
PLACE = "--image ada/torch --weka bucket:/w"
SUBMITTING = [f"beaker /w/new /w/m1 /w/m2 {PLACE}", f"sweep s.yml beaker {PLACE}", "retry soup"]
ASKING = ["status soup", "logs soup", "logs -f soup", "why soup", "cancel soup", "jobs"]
FAILED = 9


@pytest.fixture
def job(launch, beaker_server, monkeypatch, work: Path) -> str:
    """Submit a job whose run has failed since, which has not been queried yet."""
    for name, value in beaker_server.environment().items():
        monkeypatch.setenv(name, value)
    (work / "s.yml").write_text(SWEEP)
    done = launch("beaker", *f"/w/out /w/m1 /w/m2 --name soup {PLACE}".split())
    assert done.code == 0, done.err
    beaker_server.proceed("01ABC0", FAILED, {"exit_code": 3})
    return "soup"


@pytest.fixture
def fails(job: str, beaker_server, monkeypatch) -> Callable[[str], str]:
    """Return a function that causes a failure and returns the text a user has to see."""

    def begin(failure: str) -> str:
        if failure == "no client":
            monkeypatch.setitem(sys.modules, "beaker", None)
            return "beaker-py is missing in"
        if failure == "quota":
            beaker_server.mishap("always quota")
            return "budget ai2/research is used up"
        changes = {"user_token": "wrong"} if failure == "wrong token" else {"rpc_address": nobody()}
        for name, value in beaker_server.environment(**changes).items():
            monkeypatch.setenv(name, value)
        return "token rejected" if failure == "wrong token" else "not reachable"

    return begin


def nobody() -> str:
    """Return an address where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"localhost:{unused.getsockname()[1]}"


def everything(work: Path) -> dict[str, bytes]:
    paths = [path for place in (work, work.parent / "home") for path in place.rglob("*")]
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("failure", ["server down", "wrong token", "no client"])
@pytest.mark.parametrize("words", ASKING)
def test_asking(words: str, failure: str, fails, launch, beaker_server, work: Path) -> None:
    message = fails(failure)
    before = everything(work)
    done = launch(*words.split())
    assert (done.code, message in done.err) == (6, True), done
    assert len(done.err.splitlines()) == 1 + (failure == "no client" and words != "jobs"), done
    # A table shows what was last seen.
    assert bool(done.out) is (words == "jobs")
    assert everything(work) == before


@pytest.mark.parametrize("failure", ["server down", "wrong token", "no client", "quota"])
@pytest.mark.parametrize("words", SUBMITTING)
def test_submitting(words: str, failure: str, fails, launch, beaker_server, work: Path) -> None:
    assert launch("status", "soup").out.startswith("01ABC0  failed")
    message = fails(failure)
    before, experiments = everything(work), beaker_server.experiments()
    done = launch(*words.split())
    assert (done.code, done.out) == (6, ""), done
    before_it, found, after = done.err.partition(message)
    assert found and len(after.splitlines()) == (2 if failure == "no client" else 1)
    warnings = before_it.splitlines()[:-1]
    assert all("not checked" in each or "(built in" in each for each in warnings)
    assert (everything(work), beaker_server.experiments()) == (before, experiments)
