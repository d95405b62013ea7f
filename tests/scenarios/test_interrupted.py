"""A merge killed at any moment resumes with the same command, and ends with the same bytes."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge_worker.errors import Stopped
from merge_worker.output.files import PARTIAL
from merge_worker.output.store import PartialOutput
from merge_worker.system.signals import StopFlag
from support.forked_process import Fork, Forks
from support.recipes import average, digest, one_tensor_models, plan_of, stream_into

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 10.0
"""Five, and as many for machines that others load."""
SLOW = ("--threads", "1", "--memory", "2MiB", "--shard-size", "6MB", "--progress", "off")


@pytest.fixture
def big(tmp_path: Path) -> list[Path]:
    """Write models that a process at its slowest merges in some tenths of a second."""
    return one_tensor_models(tmp_path, 10_000_000, count=3)


def command(out: Path, models: list[Path], method: str = "linear") -> list[object]:
    return ["average", out, *models, "--method", method, *SLOW]


def begun(out: Path, fork: Fork) -> None:
    """Wait until the first piece is in the journal."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and fork.running():
        if any(path.stat().st_size for path in (out / PARTIAL).glob("journal-*")):
            return
        time.sleep(0.002)


def check_unfinished(out: Path) -> None:
    """Assert that nothing looks like a model before the manifest exists."""
    if out.exists() and not (out / "merge_manifest.json").exists():
        names = {path.name for path in out.iterdir()}
        assert not ({"config.json", "model.safetensors.index.json"} <= names)


def kill_until_done(
    forks: Forks, words: list[object], out: Path, numbers: list[int], most: int = 5
) -> None:
    """Start and kill at random times, `kills` times over, then let the merge finish."""
    chance = random.Random(most)
    killed = 0
    while True:
        fork = forks.start(*words)
        if killed < most:
            if chance.random() < 0.7:
                begun(out, fork)
            time.sleep(chance.random() * 0.25)
            fork.kill(chance.choice(numbers))
        ended = fork.wait()
        assert "Traceback" not in ended.err
        # In the first milliseconds Python itself has not begun to listen.
        assert ended.code in (0, 75, -signal.SIGKILL, -signal.SIGTERM), ended
        if ended.code == 0:
            return
        check_unfinished(out)
        killed += 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "centered"])
@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGKILL]])
@pytest.mark.usefixtures("centered_method")
def test_killed_at_random_moments(
    tmp_path: Path, big: list[Path], forks: Forks, method: str, numbers: list[int]
) -> None:
    out = tmp_path / "out"
    kill_until_done(forks, command(out, big, method), out, numbers)
    assert average(tmp_path / "whole", big, "--method", method, "--shard-size", "6MB") == 0
    assert digest(out) == digest(tmp_path / "whole")
    assert not list(out.glob(".merge-partial*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_cleanly(
    tmp_path: Path, big: list[Path], forks: Forks, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    fork = forks.start(*command(out, big))
    begun(out, fork)
    began = time.monotonic()
    fork.kill(number)
    ended = fork.wait()
    assert time.monotonic() - began < WITHIN_S
    assert ended.code == 75, ended
    assert re.fullmatch(
        rf"(warning: .*\n)*merge-worker: stopped by {number.name} at \d+ %; "
        r"finished work is kept; run the same command to resume\n",
        ended.err,
    )
    assert not list((out / PARTIAL).glob("lock-*"))
    again = forks.start(*command(out, big)[:-1], "plain").wait()
    assert again.code == 0 and "continuing at" in again.err


def test_a_signal_at_any_time(tmp_path: Path, big: list[Path], forks: Forks) -> None:
    """Signals are also handled during planning and the commit."""
    for turn in range(8):
        out = tmp_path / f"out{turn}"
        fork = forks.start(*command(out, big))
        time.sleep(0.02 * turn**2)
        fork.kill(signal.SIGTERM)
        ended = fork.wait()
        # In the first milliseconds Python itself has not begun to listen.
        assert ended.code in (0, 75) or (turn == 0 and ended.code == -signal.SIGTERM), ended
        assert ended.code != 75 or ended.err.count("merge-worker: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(5))
def test_killed_many_times(tmp_path: Path, big: list[Path], forks: Forks, turn: int) -> None:
    out = tmp_path / "out"
    kill_until_done(forks, command(out, big), out, [signal.SIGKILL, signal.SIGTERM], 12 + turn)
    assert average(tmp_path / "whole", big, "--shard-size", "6MB") == 0
    assert digest(out) == digest(tmp_path / "whole")


@pytest.mark.slow
def test_killed_while_writing_dcp(tmp_path: Path, big: list[Path], forks: Forks) -> None:
    outs = [tmp_path / "whole", tmp_path / "killed"]
    words = [[*command(out, big), "--format", "dcp"] for out in outs]
    assert forks.start(*words[0]).wait().code == 0
    kill_until_done(forks, words[1], outs[1], [signal.SIGKILL])
    whole, killed = map(digest, outs)
    assert {".metadata", "__0_0.distcp"} <= whole.keys()
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.6, 1.2, 2.5])
def test_a_real_process(tmp_path: Path, big: list[Path], after_s: float) -> None:
    """Signals are also handled while torch loads, which takes seconds."""
    words = [sys.executable, "-m", "merge_worker", *map(str, command(tmp_path / "out", big))]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(after_s)
        process.terminate()
        began = time.monotonic()
        _, text = process.communicate()
    assert time.monotonic() - began < WITHIN_S
    assert process.returncode in (0, 75), text
    messages = [line for line in text.splitlines() if line.startswith("merge-worker: ")]
    assert process.returncode == 0 or ("stopped by SIGTERM" in text and len(messages) == 1), text
    assert "Traceback" not in text


@pytest.mark.slow
def test_killed_ranks(tmp_path: Path, big: list[Path], forks: Forks) -> None:
    out = tmp_path / "out"
    chance = random.Random(5)
    for _ in range(10):
        ranks = [
            forks.start(
                *command(out, big), "--ranks", "auto", env={"RANK": str(n), "WORLD_SIZE": "3"}
            )
            for n in range(3)
        ]
        time.sleep(chance.random() * 0.4)
        for fork in chance.sample(ranks, chance.randrange(1, 4)):
            fork.kill()
        assert all(fork.wait().code in (0, 75, -signal.SIGKILL) for fork in ranks)
        check_unfinished(out)
    ended = [
        fork.wait()
        for fork in [
            forks.start(
                *command(out, big), "--ranks", "auto", env={"RANK": str(n), "WORLD_SIZE": "3"}
            )
            for n in range(3)
        ]
    ]
    assert [one.code for one in ended] == [0, 0, 0], ended
    assert average(tmp_path / "whole", big, "--shard-size", "6MB") == 0
    assert digest(out) == digest(tmp_path / "whole")


def test_a_signal_ends_the_check_of_finished_work(tmp_path: Path, big: list[Path]) -> None:
    """Reading terabytes back does not keep a job from ending on a signal."""
    plan = plan_of(big)
    stream_into(tmp_path / "out", plan)
    store = PartialOutput(tmp_path / "out", plan)
    store.read_journals()
    store.open()
    stop = StopFlag()
    stop.set("stopped by SIGTERM")
    with pytest.raises(Stopped, match="stopped by SIGTERM; run the same command to resume"):
        store.drop_damaged(2, stop)
    store.close()
