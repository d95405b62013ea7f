"""Positioned reads: whole or an error with a place."""

import os
import resource
from pathlib import Path

import pytest

from merge_worker.checkpoint import reader
from merge_worker.checkpoint.reader import Files
from merge_worker.errors import InputError


@pytest.fixture
def opened() -> Files:
    return Files()


def test_reads_at_a_place(tmp_path: Path, opened: Files) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    buffer = bytearray(10)
    opened.read(str(path), 20, memoryview(buffer))
    assert bytes(buffer) == bytes(range(20, 30))
    opened.read(str(path), 0, memoryview(bytearray()))
    opened.close()


def test_long_reads_go_on(tmp_path: Path, opened: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGEST_READ", 7)
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    buffer = bytearray(60)
    opened.read(str(path), 40, memoryview(buffer))
    assert bytes(buffer) == bytes(range(40, 100))


def test_a_file_that_became_shorter(tmp_path: Path, opened: Files) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(50))
    with pytest.raises(InputError, match="ends at byte 50, shorter than when the merge began"):
        opened.read(str(path), 40, memoryview(bytearray(20)))


def test_a_file_that_is_gone_or_none(tmp_path: Path, opened: Files) -> None:
    with pytest.raises(InputError, match="No such file"):
        opened.read(str(tmp_path / "gone"), 0, memoryview(bytearray(1)))
    with pytest.raises(InputError, match="directory at byte 3"):
        opened.read(str(tmp_path), 3, memoryview(bytearray(1)))


def test_opens_once(tmp_path: Path, opened: Files) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    first = opened.descriptor(str(path))
    path.unlink()
    assert opened.descriptor(str(path)) == first
    opened.close()
    with pytest.raises(InputError):
        opened.descriptor(str(path))


def test_more_shards_than_the_usual_limit_of_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1100:
        pytest.skip("the system allows no more open files")
    one = tmp_path / "one"
    one.write_bytes(b"x")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        many = Files()
        for number in range(400):
            os.link(one, tmp_path / str(number))
            many.read(str(tmp_path / str(number)), 0, memoryview(bytearray(1)))
        many.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_beyond_the_most_are_opened_for_each_read(tmp_path: Path) -> None:
    few = Files(most=2)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    for _ in range(2):
        for number in range(5):
            few.read(str(tmp_path / str(number)), 0, memoryview(got := bytearray(1)))
            assert got == b"%d" % number
            assert (few.descriptor(str(tmp_path / str(number))) is None) == (number >= 2)
    with pytest.raises(InputError, match="No such file"):
        few.read(str(tmp_path / "gone"), 0, memoryview(bytearray(1)))
    few.close()


def test_hints_are_harmless(tmp_path: Path, opened: Files) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    opened.will_need(str(tmp_path / "x"), 0, 1 << 30)
    opened.close()
