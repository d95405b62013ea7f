"""What a run shows: bars for terminals, lines for logs, JSON for programs; nothing else."""

import io
import json
import re
import threading
from typing import Any

import pytest

from worker import progress
from worker.progress import GIB, Progress, duration


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(mode: str, stream: io.StringIO, **counts: int) -> str:
    one = Progress(mode, 4 * GIB, counts.pop("title", "out"), stream)  # type: ignore[arg-type]
    one.done_before = counts.get("done_before", 0)
    one.read(counts.get("read", 0))
    one.wrote(counts.get("wrote", 0))
    one._began -= 10
    one._show()
    return stream.getvalue()


def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    assert Progress("auto", 1, "x", Terminal()).mode == "bar"
    assert Progress("auto", 1, "x", io.StringIO()).mode == "plain"
    assert Progress("json", 1, "x", Terminal()).mode == "json"


def test_a_plain_line() -> None:
    text = shown("plain", io.StringIO(), read=3 * GIB, wrote=GIB)
    assert text.count("\n") == 1 and text.isascii()
    assert re.fullmatch(
        r"out: 25\.0 % \(1\.00 of 4\.00 GiB\), 0\.30 GiB/s in, 0\.10 out, 30 s left\n", text
    )


def test_nothing_written_yet() -> None:
    assert shown("plain", io.StringIO()).endswith("starting\n")


def test_what_an_earlier_run_did_counts_for_the_whole_but_not_for_the_rate() -> None:
    text = shown("plain", io.StringIO(), wrote=GIB, done_before=2 * GIB)
    assert "75.0 %" in text and "0.10 out" in text and "10 s left" in text


def test_json_lines_parse() -> None:
    stream = io.StringIO()
    one = Progress("json", 100, "x", stream)
    one.wrote(50)
    one._show()
    one.event("resumed", percent=3.5, name="a\x1b[31m")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first["event"] == "progress" and first["percent"] == 50.0
    assert {"bytes_in", "bytes_out", "gib_s_in", "gib_s_out", "elapsed_s", "left_s"} <= set(first)
    assert second == {"event": "resumed", "percent": 3.5, "name": "a\x1b[31m"}
    assert "\x1b" not in stream.getvalue()


def test_events_are_for_json_alone() -> None:
    stream = io.StringIO()
    Progress("plain", 100, "x", stream).event("resumed")
    assert stream.getvalue() == ""


VISIBLE = re.compile(r"\x1b\[[0-9;]*[mK]|\r")


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("title", ["x", "a-rather-long-name-of-a-folder-" * 4])
def test_a_bar_fits_its_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, title: str) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    options: dict[str, Any] = {"title": title, "read": GIB, "wrote": GIB}
    text = shown("bar", Terminal(), **options)
    assert len(VISIBLE.sub("", text)) <= columns
    assert text.startswith("\r\x1b[K") and "\n" not in text
    assert text.count("\x1b[36m") == text.count("\x1b[0m") == 1, "colours end where they begin"


def test_bars_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    filled = [shown("bar", Terminal(), wrote=quarter * GIB).count("█") for quarter in range(5)]
    assert filled == sorted(filled) and filled[0] == 0 and len(set(filled)) == 5
    assert "·" not in shown("bar", Terminal(), wrote=4 * GIB)


def test_the_bar_is_wiped_at_the_end() -> None:
    stream = Terminal()
    with Progress("auto", 1, "x", stream):
        pass
    assert stream.getvalue().endswith("\r\x1b[K")


def test_lines_come_by_themselves_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_PERIOD_S", 0.005)
    stream = io.StringIO()
    threads = threading.active_count()
    with Progress("plain", 100, "x", stream) as one:
        one.wrote(100)
        while "100.0 %" not in stream.getvalue().partition("\n")[2]:
            pass
    assert threading.active_count() == threads
    assert "100.0 %" in stream.getvalue()


def test_off_says_nothing() -> None:
    stream = Terminal()
    with Progress("off", 100, "x", stream) as one:
        one.wrote(100)
    assert stream.getvalue() == ""


def test_nothing_to_write_is_all_of_it() -> None:
    assert Progress("off", 0, "x", io.StringIO()).percent == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (7500, "2:05 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
