"""Every system call of a real process fails once, below Python, by LD_PRELOAD."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.forked_process import Ended, Forks
from support.recipes import average, digest, some_models

FAKES = Path(__file__).resolve().parents[1] / "fakes"
WRITES, READS = "pwrite write fsync ftruncate", "pread preadv read"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Return the factory of merge-worker processes with failing system calls."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("faults")
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", folder / "faults.so", FAKES / "faults.c"]
    subprocess.run([*words, "-ldl"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(folder / "faults.so"))
        parent = Forks(folder)
    yield parent
    parent.close()


class Worker:
    """One merge, and the call of it that fails."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks, self.folder = forks, folder
        self.models = some_models(folder / "in", 2)
        for model in self.models:
            (model / "tokenizer.json").write_text("{}")

    def merge(self, calls: str, at: int, number: int) -> tuple[Ended, int]:
        """Return how the merge ended, and the number of such calls."""
        below = self.folder / ("in" if calls == READS else "out")
        count = self.folder / "count"
        env = {
            "FAULT_BELOW": str(below),
            "FAULT_CALLS": calls,
            "FAULT_AT": str(at),
            "FAULT_ERRNO": str(number),
            "FAULT_COUNT": str(count),
        }
        words = (
            "average",
            self.folder / "out",
            *self.models,
            "--threads",
            "1",
            "--progress",
            "off",
        )
        ended = self.forks.start(*words, "--shard-size", "9kB", env=env).wait()
        return ended, int(count.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("calls", [WRITES, READS])
@pytest.mark.parametrize("number", [0, errno.EINTR, errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_every_system_call_fails_once(
    tmp_path: Path, faulty: Forks, calls: str, number: int
) -> None:
    worker = Worker(faulty, tmp_path)
    assert average(tmp_path / "whole", worker.models, "--shard-size", "9kB") == 0
    ended, count = worker.merge(calls, -1, 0)
    assert ended.code == 0 and count > 10
    codes = set()
    for at in range(count):
        shutil.rmtree(tmp_path / "out")
        ended, _ = worker.merge(calls, at, number)
        codes.add(ended.code)
        assert "Traceback" not in ended.err, ended
        if ended.code:
            assert os.strerror(number) in ended.err, ended
            again, _ = worker.merge(calls, -1, 0)
            assert again.code == 0, again
        assert digest(tmp_path / "out") == digest(tmp_path / "whole")
    # Interrupted calls are repeated and short ones continued, without a message.
    fatal = number not in (0, errno.EINTR)
    assert codes <= ({0, 3, 4} if fatal else {0}), codes
    assert not fatal or (3 if calls == READS else 4) in codes
