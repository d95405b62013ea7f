"""A scheduler's signal in any phase ends the run with 75 within five seconds; work is kept."""

import os
import signal
import time
from pathlib import Path

import pytest

from merge_worker.errors import InputError, Stopped
from support.forked_process import Forks
from support.recipes import average, digest, one_tensor_models

PHASES = {
    "reads the headers": "merge_worker.planning.plan open_inputs",
    "plans": "merge_worker.planning.plan assign_shards",
    "looks at OUT": "merge_worker.engine.run inspect_output",
    "takes the lock": "merge_worker.engine.run refuse_others",
    "takes over journals": "merge_worker.output.store PartialOutput.read_journals",
    "begins to read ahead": "merge_worker.engine.one_pass ReadAhead.__enter__",
    "starts its lanes": "merge_worker.engine.stream Engine.run",
    "reads": "merge_worker.checkpoint.reader Files.read",
    "looks": "merge_worker.engine.lane Lane.collect",
    "merges": "merge_worker.engine.lane Lane.merge",
    "writes": "merge_worker.output.store PartialOutput.write",
    "forces bytes to the storage": "merge_worker.output.store PartialOutput.sync",
    "checksums the result": "merge_worker.output.commit _outputs",
    "hashes the result": "merge_worker.output.commit Hashes.finish",
    "writes side files": "merge_worker.output.commit commit",
    "cleans up": "merge_worker.output.commit remove_partial",
}
KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
WITHIN_S = 10.0
"""Five, and as many for machines that others load."""
pytestmark = pytest.mark.usefixtures("centered_method")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return one_tensor_models(tmp_path_factory.mktemp("big"), 2_600_000)


@pytest.fixture(scope="module")
def whole(big: list[Path], forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert forks.start(*command(out, big)).wait().code == 0
    return out


def command(out: Path, models: list[Path]) -> list[object]:
    options = ["--method", "centered", "--memory", "2MiB", "--threads", 1, "--sha256"]
    return ["average", out, *models, *options, "--progress", "off"]


def stopped(forks: Forks, words: list[object], hurt: str) -> tuple[int, float, str]:
    """Return the exit code, the seconds since the signal, and the message."""
    fork = forks.start(*words, env={"SIGNAL_IN": hurt})
    ended = fork.wait()
    seconds = time.monotonic() - float(fork.place.with_suffix(".at").read_text())
    messages = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    return ended.code, seconds, "\n".join(messages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", PHASES)
def test_any_phase(
    tmp_path: Path, big: list[Path], whole: Path, forks: Forks, phase: str, kind: signal.Signals
) -> None:
    out = tmp_path / "out"
    code, seconds, message = stopped(forks, command(out, big), f"{PHASES[phase]} {int(kind)} 0")
    assert code == 75 and seconds < WITHIN_S, message
    assert "run the same command" in message and "\n" not in message, message
    assert forks.start(*command(out, big)).wait().code == 0
    assert digest(out) == digest(whole)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["merges", "hashes the result"])
def test_long_operations_do_not_delay_the_exit(
    tmp_path: Path, big: list[Path], whole: Path, forks: Forks, phase: str
) -> None:
    """Exit without waiting for threads at work on a matrix or reading a file back."""
    out = tmp_path / "out"
    hurt = f"{PHASES[phase]} {int(signal.SIGTERM)} 60"
    code, seconds, message = stopped(forks, command(out, big), hurt)
    assert code == 75 and seconds < WITHIN_S, message
    assert "stopped by SIGTERM" in message
    assert forks.start(*command(out, big)).wait().code == 0
    assert digest(out) == digest(whole)


@pytest.mark.parametrize("place", ["merge_worker.cli cancel_exit", "os _exit"])
def test_a_signal_after_the_merge(
    tmp_path: Path, big: list[Path], forks: Forks, place: str
) -> None:
    """Ignore a signal once the result is printed: nothing is left that could be stopped."""
    out = tmp_path / "out"
    code, _, message = stopped(forks, command(out, big), f"{place} {int(signal.SIGTERM)} 0")
    assert (code, message) == (0, "")
    assert (out / "merge_manifest.json").exists()


@pytest.mark.parametrize("error", [AttributeError, OSError, InputError])
def test_a_signal_that_becomes_another_error(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Exit with 75 even if an extension module turns the handler's exception into another."""

    def half_imported(*words: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Stopped:
            raise error("partially initialized module") from None

    monkeypatch.setattr("merge_worker.planning.plan.open_inputs", half_imported)
    assert average(tmp_path / "out", models) == 75
    monkeypatch.undo()
    assert average(tmp_path / "out", models) == 0


def test_the_exit_timer_is_cancelled(tmp_path: Path, big: list[Path]) -> None:
    assert average(tmp_path / "out", big) == 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
