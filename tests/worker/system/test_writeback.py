"""Early write-back is only a hint: it runs and ends, and the result does not depend on it."""

import threading
import time
from pathlib import Path

import pytest

from merge_worker.system import writeback
from merge_worker.system.writeback import Flusher


def test_flushes_while_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "PERIOD_S", 0.001)
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(writeback, "_sync_file_range", lambda: lambda *words: calls.append(words))
    before = threading.active_count()
    with (tmp_path / "x").open("wb") as file, Flusher([file.fileno()]):
        deadline = time.monotonic() + 10
        while len(calls) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert calls[0] == (file.fileno(), 0, 0, 2)
    assert len(calls) >= 3 and threading.active_count() == before


def test_the_real_call_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "PERIOD_S", 0.001)
    # 9999 is not open: an error code, not an exception.
    with (tmp_path / "x").open("wb") as file, Flusher([file.fileno(), 9999]):
        file.write(b"x" * 10_000)
        file.flush()
        time.sleep(0.02)
    assert (tmp_path / "x").read_bytes() == b"x" * 10_000


def test_systems_without_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", lambda: None)
    with Flusher([0]) as flusher:
        assert not flusher._thread.is_alive()
