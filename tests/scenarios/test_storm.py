"""A storm of kills, stops, wakes, deletions and takeovers by two hosts whose clocks differ.

No manifest is ever finished over wrong bytes, and no finished folder changes, whoever wakes up
later. `pytest tests/scenarios/test_storm.py --slow --storm-rounds 200` takes half an hour.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_worker.errors import Stopped
from merge_worker.output.files import MANIFEST, PARTIAL
from support.forked_process import Fork, Forks
from support.recipes import average, one_tensor_models

pytestmark = pytest.mark.slow
HOSTS = ("one 0", "two -200", "two 200")
OPTIONS = ("--memory", "2MiB", "--shard-size", "1MB", "--progress", "off")
CODES = (0, 4, Stopped.exit_code, -signal.SIGKILL, -signal.SIGTERM)
ACTIONS = 16


def send(pid: int, number: int) -> None:
    """Signal a process of the storm, unless it is gone: the system may use its id again."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if b"forked_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)


def family(fork: Fork) -> list[int]:
    """Return a process and those that it has started."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{fork.pid}/task/{fork.pid}/children").read_text()
    return [fork.pid, *map(int, text.split())]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.safetensors*")}


def manifest_of(out: Path) -> tuple[int, str] | None:
    """Return inode and key of a manifest; None if there is none."""
    try:
        with (out / MANIFEST).open() as file:
            return os.fstat(file.fileno()).st_ino, json.load(file)["key"]
    except FileNotFoundError:
        return None


class Storm:
    """One round: an output folder, processes that write to it, and what happens to them."""

    def __init__(self, forks: Forks, folder: Path, models: list[Path], seed: int) -> None:
        self.chance = random.Random(seed)
        self.forks, self.out = forks, folder / f"out{seed}"
        self.merges = (models, models[::-1])
        self.wholes = dict[str, dict[str, bytes]]()
        for number, paths in enumerate(self.merges):
            whole = folder / f"whole{number}"
            assert whole.exists() or average(whole, paths, "--shard-size", "1MB") == 0
            self.wholes[json.loads((whole / MANIFEST).read_text())["key"]] = contents(whole)
        self.begun: list[Fork] = []
        self.pids: set[int] = set()

    def start(self) -> None:
        """Start one of two merges, alone or as two ranks, on one of two hosts."""
        models = self.chance.choice(self.merges)
        option = self.chance.choice([(), (), ("--overwrite",), ("--no-resume",)])
        threads = ("--threads", self.chance.choice([1, 1, 3]))
        world = self.chance.choice([1, 1, 2])
        for rank in range(world):
            env = {"HOST": self.chance.choice(HOSTS)}
            env |= {"RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
            words = ("average", self.out, *models, *OPTIONS, *threads, *option)
            self.begun.append(self.forks.start(*words, env=env))

    def stop(self) -> None:
        """Suspend a process, or one of those that it has started."""
        if self.begun:
            send(self.chance.choice(family(self.chance.choice(self.begun))), signal.SIGSTOP)

    def wake(self) -> None:
        for fork in self.chance.sample(self.begun, len(self.begun) // 2):
            for pid in family(fork):
                send(pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill a process, whose own ones may stand still and wake up as orphans."""
        if self.begun:
            fork = self.chance.choice(self.begun)
            self.pids |= {*family(fork)}
            for pid in family(fork)[1:]:
                send(pid, self.chance.choice([signal.SIGSTOP, signal.SIGCONT]))
            send(fork.pid, self.chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))

    def delete(self) -> None:
        """Delete OUT, its manifest first: what is deleted by halves is not finished."""
        (self.out / MANIFEST).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is written to meanwhile
            shutil.rmtree(self.out)

    def remove_shard(self) -> None:
        shards = sorted((self.out / PARTIAL).glob("*.partial"))
        if shards:
            self.chance.choice(shards).unlink(missing_ok=True)

    def rage(self) -> None:
        acts = [self.start] * 5 + [self.stop] * 4 + [self.wake, self.kill] * 3
        for _ in range(ACTIONS):
            self.chance.choice([*acts, self.delete, self.remove_shard])()
            time.sleep(self.chance.choice([0.0, 0.05, 0.3, 0.8]))
            self.check()

    def check(self) -> None:
        """Assert that a finished folder has the bytes of its merge."""
        for _ in range(20):
            before = manifest_of(self.out)
            found = contents(self.out) if before else {}
            if manifest_of(self.out) == before:  # else another merge has replaced it meanwhile
                assert before is None or found == self.wholes[before[1]]
                return

    def settle(self) -> None:
        """Finish a merge while all others stand still; then wake these up."""
        for _ in range(2):
            self.pids |= {pid for fork in self.begun for pid in family(fork)}
            for pid in self.pids:
                send(pid, signal.SIGSTOP)
        words = ("average", self.out, *self.merges[0], *OPTIONS, "--overwrite")
        ended = self.forks.start(*words, env={"HOST": "three 100"}).wait()
        if "--no-resume" in ended.err:  # a shard was removed while files got their final names
            assert ended.code == 4 and manifest_of(self.out) is None, ended
            ended = self.forks.start(*words, "--no-resume", env={"HOST": "three 100"}).wait()
        assert ended.code == 0 and "Traceback" not in ended.err, ended
        assert manifest_of(self.out) is not None
        self.check()
        for pid in self.pids:
            send(pid, signal.SIGCONT)
        for fork in self.begun:
            ended = fork.wait()
            assert ended.code in CODES and "Traceback" not in ended.err, ended
        self.check()
        ended = self.forks.start(*words).wait()
        assert ended.code == 0, ended
        self.check()

    def end(self) -> None:
        for pid in self.pids:
            send(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return one_tensor_models(tmp_path_factory.mktemp("models"), 3_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storm")


@pytest.fixture
def storm(forks: Forks, folder: Path, models: list[Path], seed: int) -> Iterator[Storm]:
    storm = Storm(forks, folder, models, seed)
    yield storm
    storm.end()
    shutil.rmtree(storm.out, ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("seed", range(metafunc.config.getoption("--storm-rounds")))


def test_a_storm(storm: Storm, seed: int) -> None:
    storm.rage()
    storm.settle()
