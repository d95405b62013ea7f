"""Bytes arrive at their positions, through the page cache or not, whatever their alignment."""

import errno
import mmap
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.output import shard_file
from merge_worker.output.shard_file import LEAST_DIRECT, ShardFile, early_writeback
from merge_worker.planning.shards import PAGE
from merge_worker.system.machine import Mount, mount_of

SIZE = 4 * LEAST_DIRECT + 123


def landing(data: bytes, position: int) -> memoryview:
    """Return `data` in memory with the page offset of `position`."""
    buffer = mmap.mmap(-1, len(data) + PAGE)
    place = position % PAGE
    buffer[place : place + len(data)] = data
    return memoryview(buffer)[place : place + len(data)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outfile") / "file"


@given(st.integers(0, SIZE), st.integers(0, SIZE), st.integers(0, 7), st.booleans())
def test_any_piece_at_any_position(
    path: Path, first: int, last: int, off: int, direct: bool
) -> None:
    first, last = sorted((first, last))
    path.unlink(missing_ok=True)
    file = ShardFile(path, SIZE)
    if not direct:
        file._direct = -1
    data = bytes((position * 7 + 1) % 251 for position in range(first, last))
    # A wrong alignment may only cost time.
    file.write(landing(data, first + off), first)
    file.write(landing(b"end", SIZE - 3), SIZE - 3)
    file.close()
    expected = bytearray(SIZE)
    expected[first:last] = data
    expected[SIZE - 3 :] = b"end"
    assert path.read_bytes() == bytes(expected)


def test_contents_stay_unless_the_size_differs(tmp_path: Path) -> None:
    ShardFile(tmp_path / "a", 10).write(landing(b"0123456789", 0), 0)
    ShardFile(tmp_path / "a", 10).close()
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    ShardFile(tmp_path / "a", 4).close()
    assert (tmp_path / "a").read_bytes() == b"0123"


def test_direct_writes_fall_back_to_the_page_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.unlink(missing_ok=True)
    file = ShardFile(path, SIZE)
    file._direct = direct = os.dup(file.fd)
    write = os.pwrite

    def refuse(fd: int, data: bytes, position: int) -> int:
        if fd == direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, data, position)

    monkeypatch.setattr(os, "pwrite", refuse)
    data = bytes(range(256)) * (LEAST_DIRECT // 128)
    file.write(landing(data, 8), 8)
    file.close()
    os.close(direct)
    assert path.read_bytes()[8 : 8 + len(data)] == data


def test_other_errors_are_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ShardFile(path, SIZE)

    def full(fd: int, data: bytes, position: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        file.write(landing(bytes(LEAST_DIRECT * 2), 0), 0)
    file.close()


def test_only_measured_file_systems_are_written_directly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_file, "mount_of", lambda fd: Mount("lustre"))
    file = ShardFile(path, SIZE)
    assert file._direct == -1
    file.close()


def test_copies_of_whole_pages_are_left_to_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_file, "mount_of", lambda fd: Mount("btrfs"))
    data = bytes(range(251)) * 400
    (tmp_path / "source").write_bytes(b"." * 100 + data)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    copied: list[int] = []
    real = os.copy_file_range

    def counted(*words: int) -> int:
        copied.append(real(*words))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", counted)
    for position in (PAGE + 100, PAGE + 104):  # as far beyond a page as the source, or not
        path = tmp_path / str(position)
        file = ShardFile(path, position + len(data))
        file.copy(source, 100, landing(data, 0), position)
        file.close()
        assert path.read_bytes()[position:] == data
    assert sum(copied) == (len(data) - (PAGE - 100)) // PAGE * PAGE
    os.close(source)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_copy_that_the_file_system_refuses_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(shard_file, "mount_of", lambda fd: Mount("xfs"))

    def refuse(*_: object) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    data = bytes(range(256)) * 64
    file = ShardFile(tmp_path / "out", len(data))
    file.copy(0, 0, landing(data, 0), 0)
    file.close()
    assert (tmp_path / "out").read_bytes() == data


def test_space_is_taken_at_once(tmp_path: Path) -> None:
    """Space is allocated at once if the file system can; a full disk is noticed early."""
    ShardFile(tmp_path / "x", 3_000_000).close()
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    reserves = mount_of(fd).kind in shard_file.RESERVES
    os.close(fd)
    if not reserves:
        pytest.skip("this file system does not reserve")
    assert (tmp_path / "x").stat().st_blocks * 512 >= 3_000_000


def test_writeback_starts_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "WRITEBACK_PERIOD_S", 0.001)
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(shard_file, "_sync_file_range", lambda: lambda *words: calls.append(words))
    before = threading.active_count()
    with (tmp_path / "x").open("wb") as file, early_writeback([file.fileno()]):
        deadline = time.monotonic() + 10
        while len(calls) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert calls[0] == (file.fileno(), 0, 0, 2)
    assert len(calls) >= 3 and threading.active_count() == before


def test_writeback_is_only_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "WRITEBACK_PERIOD_S", 0.001)
    # 9999 is not open: an error code, not an exception.
    with (tmp_path / "x").open("wb") as file, early_writeback([file.fileno(), 9999]):
        file.write(b"x" * 10_000)
        file.flush()
        time.sleep(0.02)
    assert (tmp_path / "x").read_bytes() == b"x" * 10_000


def test_systems_without_writeback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "_sync_file_range", lambda: None)
    before = threading.active_count()
    with early_writeback([0]):
        pass
    assert threading.active_count() == before
