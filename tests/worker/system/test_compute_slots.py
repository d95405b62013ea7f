"""At most one computing thread per processor; threads waiting for storage release their slot."""

import os
import threading
import time
from pathlib import Path

import pytest

from merge_worker.checkpoint import reader
from merge_worker.checkpoint.reader import Files
from merge_worker.errors import InputError
from merge_worker.system.compute_slots import UNLIMITED, ComputeSlots


def most_inside(turns: ComputeSlots, threads: int, away: bool) -> tuple[int, int]:
    """Return the most threads that computed, and that waited, at the same time."""
    lock, counts, most = threading.Lock(), [0, 0], [0, 0]

    def change(which: int, by: int) -> None:
        with lock:
            counts[which] += by
            most[which] = max(most[which], counts[which])

    def act() -> None:
        for _ in range(5):
            with turns:
                change(0, 1)
                time.sleep(0.002)
                change(0, -1)
                if away:
                    with turns.released():
                        change(1, 1)
                        time.sleep(0.01)
                        change(1, -1)

    started = [threading.Thread(target=act) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return most[0], most[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_limited_number_at_a_time(count: int) -> None:
    inside, away = most_inside(ComputeSlots(count), 6, away=True)
    assert inside <= count and away > count


def test_no_limit() -> None:
    assert most_inside(ComputeSlots(), 6, away=False)[0] > 2


def test_an_error_releases_the_slot() -> None:
    turns = ComputeSlots(1)
    with pytest.raises(ValueError), turns, turns.released():
        raise ValueError
    assert most_inside(turns, 2, away=False)[0] == 1


class Watched(ComputeSlots):
    """Slots that count how often they were released for storage."""

    left = 0

    def released(self):  # type: ignore[no-untyped-def]
        self.left += 1
        return super().released()


def test_cached_data_are_read_without_releasing_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    buffer, turns = bytearray(10_000), Watched(1)

    def cached(fd: int, part: memoryview, offset: int) -> int:
        return os.preadv(fd, [part[:4096]], offset)  # a part of it is in memory

    monkeypatch.setattr(reader, "_cached", cached)
    with turns:
        Files().read(str(path), 100, memoryview(buffer), turns)
    assert buffer == path.read_bytes()[100:10_100] and turns.left == 0

    monkeypatch.setattr(reader, "_cached", lambda *place: 0)
    with turns:
        Files().read(str(path), 100, memoryview(buffer), turns)
        assert buffer == path.read_bytes()[100:10_100] and turns.left == 1
        with pytest.raises(InputError, match="ends at byte 16384"):
            Files().read(str(path), 16_000, memoryview(buffer), turns)
    assert turns.left == 3


@pytest.mark.parametrize("turns", [UNLIMITED, ComputeSlots(1)], ids=["any", "one"])
def test_systems_without_nowait_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: ComputeSlots
) -> None:
    """Slots are released for every read without RWF_NOWAIT, or outside Linux."""
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    buffer = bytearray(4)
    with turns:
        Files().read(str(path), 3, memoryview(buffer), turns)
    assert buffer == b"3456"
