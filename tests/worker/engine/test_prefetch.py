"""Read-ahead hints: in order, within its window, and never in the way."""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

from merge_worker.checkpoint.reader import Files
from merge_worker.engine.prefetch import ReadAhead
from merge_worker.engine.work import Work
from merge_worker.errors import InputError
from merge_worker.planning.step import Piece
from support.recipes import step


class NotedHints(Files):
    """Files that note the hints to the kernel."""

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


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


def test_stays_within_its_window() -> None:
    files = NotedHints()
    # Two and a half tensors of 4000 bytes.
    with ReadAhead(files, work(range(5, 15)), window=10_000) as ahead:
        assert soon(lambda: len(files.hints) == 3)
        time.sleep(0.05)
        assert len(files.hints) == 3
        ahead.reached(9)
        assert soon(lambda: len(files.hints) == 7)
        ahead.reached(14)
        assert soon(lambda: len(files.hints) == 10)


def test_one_huge_tensor_is_not_asked_for_at_once() -> None:
    files = NotedHints()
    with ReadAhead(files, work(range(1)), window=1_000):
        assert soon(lambda: files.hints == [("f", 8, 1_000)])


def test_ends_when_asked_although_far_from_done() -> None:
    before = threading.active_count()
    with ReadAhead(NotedHints(), work(range(100)), window=1):
        pass
    assert threading.active_count() == before


def test_a_lost_file_is_for_the_lanes_to_report() -> None:
    files = NotedHints()
    files.fails = True
    with ReadAhead(cast(Any, files), work(range(3))) as ahead:
        ahead.reached(2)
    assert files.hints == []


def test_nothing_to_do() -> None:
    with ReadAhead(NotedHints(), []):
        pass
