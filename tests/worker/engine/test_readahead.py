"""The reader ahead: in order, within its window, and never in the way."""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from merge_worker.checkpoint.reader import Files
from merge_worker.engine import readahead
from merge_worker.engine.readahead import ReadAhead
from merge_worker.engine.work import Work
from merge_worker.errors import InputError
from merge_worker.planning.step import Piece
from support.recipes import step


class Told(Files):
    """Notes what the kernel is told."""

    def __init__(self) -> None:
        super().__init__()
        self.hints: list[tuple[str, int, int]] = []
        self.fails = False

    def will_need(self, path: str, offset: int, count: int) -> None:
        if self.fails:
            raise InputError("gone")
        self.hints.append((path, offset, count))


def work(numbers: range) -> list[Work]:
    return [Work(n, step(1000, 100, ("F32",)), (Piece(0, 10),)) for n in numbers]


def soon(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not what() and time.monotonic() < deadline:
        time.sleep(0.002)
    return what()


def test_stays_within_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "WINDOW", 10_000)  # two and a half tensors of 4000 bytes
    files = Told()
    with ReadAhead(files, work(range(5, 15))) as ahead:
        assert soon(lambda: len(files.hints) == 3)
        time.sleep(0.05)
        assert len(files.hints) == 3
        ahead.reached(9)
        assert soon(lambda: len(files.hints) == 7)
        ahead.reached(14)
        assert soon(lambda: len(files.hints) == 10)


def test_one_huge_tensor_is_not_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "WINDOW", 1_000)
    files = Told()
    with ReadAhead(files, work(range(1))):
        assert soon(lambda: files.hints == [("f", 8, 1_000)])


def test_ends_when_told_although_far_from_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "WINDOW", 1)
    before = threading.active_count()
    with ReadAhead(Told(), work(range(100))):
        pass
    assert threading.active_count() == before


def test_a_lost_file_is_for_the_lanes_to_report() -> None:
    files = Told()
    files.fails = True
    with ReadAhead(cast(Any, files), work(range(3))) as ahead:
        ahead.reached(2)
    assert files.hints == []


def test_nothing_to_do() -> None:
    with ReadAhead(Told(), []):
        pass
