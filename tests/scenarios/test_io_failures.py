"""Every call that reads, writes or renames a file fails once: exit code, and the same result after.

Runs in this process and replaces the functions of os that the worker calls, one call at a time.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from merge_worker.output.files import PARTIAL
from support.recipes import average, digest, some_models

WORDS = ("--threads", "1", "--shard-size", "9kB", "--sha256")
WRITES = ("pwrite", "write", "fsync", "ftruncate", "mkdir", "rename", "replace", "posix_fallocate")
READS = ("preadv", "pread")


class Faults:
    """A counter of calls of os functions below a folder; fails the call of the chosen number."""

    def __init__(self, patch: pytest.MonkeyPatch, names: tuple[str, ...], below: Path) -> None:
        self.below, self.calls, self.at = str(below), list[str](), -1
        self.fail: Callable[[Callable[..., Any], tuple[Any, ...]], Any] | None = None
        for name in names:
            if hasattr(os, name):
                patch.setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *words: Any, **more: Any) -> Any:
            if not place(target).startswith(self.below):
                return real(target, *words, **more)
            self.calls.append(f"{name} {place(target).rpartition('/')[2]}")
            if self.fail is not None and len(self.calls) - 1 == self.at:
                return self.fail(real, (target, *words))
            return real(target, *words, **more)

        return call


def place(target: Any) -> str:
    return os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)  # noqa: PTH115


def raises(number: int) -> Callable[..., Any]:
    def fail(real: Callable[..., Any], words: tuple[Any, ...]) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def short(real: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    """Transfer half of the bytes requested, as POSIX allows."""
    fd, data, *rest = words
    if real.__name__ == "preadv":
        return real(fd, [data[0][: max(1, len(data[0]) // 2)]], *rest)
    if real.__name__ == "pread":
        return real(fd, max(1, data // 2), *rest)
    return real(fd, data[: max(1, len(data) // 2)], *rest)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    models = some_models(tmp_path / "in", 2)
    for model in models:
        (model / "tokenizer.json").write_text("{}")
    return models


def runs(
    tmp_path: Path, inputs: list[Path], patch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> Iterator[tuple[Faults, Path]]:
    """Yield a fresh OUT for each call of an undisturbed run, with that call set to fail."""
    below = tmp_path / ("in" if names == READS else "outs")
    faults = Faults(patch, names, below)
    assert average(tmp_path / "outs" / "whole", inputs, *WORDS) == 0
    count = len(faults.calls)
    assert count > 10, faults.calls
    for number in range(count):
        faults.calls, faults.at = [], number
        yield faults, tmp_path / "outs" / str(number)
        shutil.rmtree(tmp_path / "outs" / str(number), ignore_errors=True)


def check_same_end(faults: Faults, out: Path, inputs: list[Path], whole: dict[str, int]) -> None:
    """Assert that the same command succeeds after the fault, with the same bytes."""
    faults.fail = None
    unfinished = not (out / "merge_manifest.json").exists()
    assert not unfinished or not (out / "config.json").exists() or (out / PARTIAL).exists()
    assert average(out, inputs, *WORDS) == 0
    assert digest(out) == whole
    assert not list(out.glob(f"{PARTIAL}*")) or not unfinished


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ESTALE]
)
def test_every_call_that_writes(
    tmp_path: Path,
    inputs: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    failed = set()
    for faults, out in runs(tmp_path, inputs, monkeypatch, WRITES):
        faults.fail = raises(number)
        code = average(out, inputs, *WORDS)
        if len(faults.calls) <= faults.at:
            continue  # how often threads wait for each other differs a little
        failed.add((faults.calls[faults.at], code))
        text = capsys.readouterr().err
        assert code in (0, 4), (faults.calls[faults.at], text)
        assert "Traceback" not in text and (code == 0 or os.strerror(number) in text)
        check_same_end(faults, out, inputs, digest(tmp_path / "outs" / "whole"))
    failing = {call.split()[0] for call, code in failed if code == 4}
    assert {"pwrite", "write", "fsync"} <= failing, failed  # Python 3.10 keeps some for itself


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENODEV])
def test_every_call_that_reads(
    tmp_path: Path,
    inputs: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    for faults, out in runs(tmp_path, inputs, monkeypatch, READS):
        faults.fail = raises(number)
        assert average(out, inputs, *WORDS) == 3, faults.calls[faults.at]
        text = capsys.readouterr().err
        assert os.strerror(number) in text and "Traceback" not in text
        check_same_end(faults, out, inputs, digest(tmp_path / "outs" / "whole"))


@pytest.mark.parametrize("names", [("pwrite", "write"), READS])
def test_every_call_moves_less_than_asked(
    tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    for faults, out in runs(tmp_path, inputs, monkeypatch, names):
        faults.fail = short
        assert average(out, inputs, *WORDS) == 0, faults.calls[faults.at]
        check_same_end(faults, out, inputs, digest(tmp_path / "outs" / "whole"))
