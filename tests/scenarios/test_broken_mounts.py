"""Merges on a mount that fails like a network mount: stale, cut off, over its quota, slow.

Expected each time: exit code 4 for the output and 3 for an input, a readable message; finished work
is kept, and the same command resumes to the same bytes.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_worker.output.files import PARTIAL
from support.broken_mounts import Mount, make_mount
from support.recipes import (
    after_a_third,
    average,
    digest,
    one_tensor_models,
    shards_of,
    some_models,
)

pytestmark = pytest.mark.slow
OUT_BYTES = 8_000_000
WORDS = ("--threads", "1", "--memory", "4MiB")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return one_tensor_models(tmp_path_factory.mktemp("models"), OUT_BYTES // 2)


@pytest.fixture(scope="module")
def whole(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert average(out, models) == 0
    return digest(out)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    made = make_mount(tmp_path)
    yield made
    made.unmount()


@pytest.fixture
def inputs(mount: Mount, models: list[Path]) -> list[Path]:
    for model in models:
        shutil.copytree(model, mount.store / model.name)
    return [mount.place / model.name for model in models]


def merge(mount: Mount, models: list[Path], *words: str) -> int:
    """Merge without the locks, which a process that has ended would not hold."""
    for lock in (mount.store / "out" / PARTIAL).glob("lock-*"):
        lock.unlink()
    return average(mount.place / "out", models, *WORDS, *words)


def error_of(capsys: Capture, *words: str) -> str:
    text = capsys.readouterr().err
    assert any(word in text for word in words), text
    assert "Traceback" not in text and len(text.strip().splitlines()) <= 3, text
    return text


@pytest.mark.parametrize(
    "fault",
    [
        "write ESTALE 9 1",
        "write EDQUOT 5 1000",
        "write ENOTCONN 9 1000",
        "fsync EDQUOT 1 1",  # when NFS tells what did not fit
        "flush EIO 3 1",  # of close(), as NFS does
        "create ESTALE 1 1000",
        "mkdir EROFS 0 1000",
        "open ESTALE 0 1000",
        "rename EIO 1 1000",
    ],
)
def test_an_output_that_fails(
    mount: Mount, models: list[Path], whole: dict[str, int], capsys: Capture, fault: str
) -> None:
    mount.fails(fault)
    assert merge(mount, models) == 4
    assert mount.met
    text = error_of(capsys, os.strerror(getattr(errno, fault.split()[1])))
    assert "run the same command to resume" in text
    assert not (mount.store / "out" / "merge_manifest.json").exists()
    mount.fails()
    assert merge(mount, models) == 0
    assert digest(mount.place / "out") == whole


def test_a_mount_that_vanishes_halfway(
    mount: Mount,
    models: list[Path],
    whole: dict[str, int],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_a_third(monkeypatch, OUT_BYTES, mount.vanish)
    assert merge(mount, models) == 4
    error_of(capsys, os.strerror(errno.ENOTCONN), "Software caused connection abort")
    assert average(mount.place / "out", models, *WORDS) == 4, "it still is"
    error_of(capsys, os.strerror(errno.ENOTCONN))
    mount.again()
    assert merge(mount, models, "--progress", "plain") == 0
    assert "continuing at" in capsys.readouterr().err
    assert digest(mount.place / "out") == whole


def test_inputs_that_vanish_halfway(
    mount: Mount,
    inputs: list[Path],
    whole: dict[str, int],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_a_third(monkeypatch, OUT_BYTES, mount.vanish)
    assert average(tmp_path / "out", inputs, *WORDS) == 3
    error_of(capsys, os.strerror(errno.ENOTCONN), "Software caused connection abort")
    assert average(tmp_path / "out", inputs, *WORDS) == 3, "they still are"
    error_of(capsys, os.strerror(errno.ENOTCONN))
    mount.again()
    assert average(tmp_path / "out", inputs, *WORDS) == 0
    assert shards_of(tmp_path / "out").items() <= whole.items()


@pytest.mark.parametrize("fault", ["read ESTALE 20 1000", "read EIO 20 1", "open ESTALE 3 1000"])
def test_inputs_that_fail(
    mount: Mount,
    inputs: list[Path],
    whole: dict[str, int],
    tmp_path: Path,
    capsys: Capture,
    fault: str,
) -> None:
    mount.fails(fault)
    assert average(tmp_path / "out", inputs, *WORDS) == 3
    assert str(mount.place) in error_of(capsys, os.strerror(getattr(errno, fault.split()[1])))
    mount.fails()
    assert average(tmp_path / "out", inputs, *WORDS) == 0
    assert shards_of(tmp_path / "out").items() <= whole.items()


def test_short_reads_and_writes(mount: Mount, inputs: list[Path], whole: dict[str, int]) -> None:
    mount.fails("read short 0 100000", "write short 0 100000")
    assert merge(mount, inputs) == 0
    assert mount.met
    mount.fails()
    assert shards_of(mount.place / "out").items() <= whole.items()


def test_a_slow_mount_and_a_deadline(
    mount: Mount, models: list[Path], whole: dict[str, int], capsys: Capture
) -> None:
    mount.fails("write 0.2 2 100000")
    assert merge(mount, models, "--deadline", "1s") == 75
    assert "run the same command" in capsys.readouterr().err
    mount.fails("write 0.01 0 100000", "open 0.05 0 100000", "fsync 0.2 0 100000")
    assert merge(mount, models, "--progress", "plain") == 0
    assert "continuing at" in capsys.readouterr().err
    assert digest(mount.place / "out") == whole


CALLS = ["lookup", "getattr", "open", "read", "opendir", "readdir"]
CHANGES = [
    "create",
    "mkdir",
    "write",
    "fsync",
    "setattr",
    "rename",
    "rename2",
    "unlink",
    "link",
    "flush",
    "statfs",
]


# The kernel looks up a stale name once more.
@pytest.mark.parametrize(
    ("call", "error"),
    [(call, "EIO") for call in (*CALLS, *CHANGES, "flush", "statfs")]
    + [(call, "ESTALE") for call in ("read", "write", "fsync", "flush", "readdir")],
)
def test_every_call_for_the_output_fails_once(
    mount: Mount, tmp_path: Path, capsys: Capture, call: str, error: str
) -> None:
    models = some_models(tmp_path, 2)
    assert merge(mount, models) == 0
    every = digest(mount.place / "out")
    for number in range(0, 900, 3 if call in ("lookup", "getattr") else 1):  # of many, some
        shutil.rmtree(mount.store / "out")
        mount.fails(f"{call} {error} {number} 1")
        code = merge(mount, models)
        met, text = mount.met, capsys.readouterr().err
        mount.fails()
        assert code in (0, 4), f"{number}: {text}"
        assert not code or os.strerror(getattr(errno, error)) in text
        assert merge(mount, models) == 0, f"{number}: {capsys.readouterr().err}"
        assert digest(mount.place / "out") == every, number
        if not met:
            return
    pytest.fail("so many calls?")


@pytest.mark.parametrize("call", CALLS)
def test_every_call_for_an_input_fails_once(
    mount: Mount, tmp_path: Path, capsys: Capture, call: str
) -> None:
    some_models(mount.store, 2)
    models = [mount.place / name for name in ("m0", "m1")]
    assert average(tmp_path / "out", models) == 0
    every = digest(tmp_path / "out")
    for number in range(200):
        mount.fails(f"{call} EIO {number} 1")
        code = average(tmp_path / "next", models)
        met, text = mount.met, capsys.readouterr().err
        mount.fails()
        # While a side file is copied, the failing end is unknown.
        assert code in (0, 3) or (code == 4 and "copy" in call), f"{number}: {text}"
        assert not code or (os.strerror(errno.EIO) in text and str(mount.place) in text)
        assert average(tmp_path / "next", models) == 0, number
        assert digest(tmp_path / "next") == every, number
        if not met:
            return
        shutil.rmtree(tmp_path / "next")
    pytest.fail("so many calls?")


def test_reads_in_flight(
    mount: Mount, inputs: list[Path], whole: dict[str, int], tmp_path: Path
) -> None:
    """One read after the other if asked for; by itself, as many as hide that storage is late."""
    for number, (words, least, most) in enumerate(
        ((("--reads-in-flight", "1"), 1, 2), ((), 4, 99))
    ):
        mount.again()
        mount.fails("read 0.02 0 100000")
        out = tmp_path / f"out{number}"
        assert average(out, inputs, *words) == 0
        assert shards_of(out).items() <= whole.items()
        assert least <= mount.most_waiting <= most
