"""Progress of a run: a bar for terminals, lines for logs, JSON for programs."""

import io
import json
import re
import threading
from typing import Any

import pytest

from merge_worker.system import progress
from merge_worker.system.progress import Progress
from merge_worker.units import GIB


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def shown(mode: str, stream: io.StringIO, **counts: Any) -> str:
    counter = Progress(mode, 4 * GIB, counts.pop("title", "out"), stream)
    counter.done_before = counts.get("done_before", 0)
    counter.read(counts.get("read", 0))
    counter.names = ["another", counts.get("tensor", "")]
    counter.wrote(counts.get("wrote", 0), 1, counts.get("nonfinite", 0))
    counter.rank, counter.world = counts.get("rank", 0), counts.get("world", 1)
    counter._began -= 10
    counter._show()
    return stream.getvalue()


def test_auto_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    assert Progress("auto", 1, "x", Terminal()).mode == "bar"
    assert Progress("auto", 1, "x", io.StringIO()).mode == "plain"
    assert Progress("json", 1, "x", Terminal()).mode == "json"


def test_a_plain_line() -> None:
    text = shown("plain", io.StringIO(), read=3 * GIB, wrote=GIB)
    assert text.count("\n") == 1 and text.isascii()
    assert re.fullmatch(
        r"out: 25\.0 % \(1\.00 of 4\.00 GiB\), 30 s left, 0\.30 GiB/s in, 0\.10 out, "
        r"\d\.\d\d GiB memory\n",
        text,
    )


def test_a_log_has_the_figures_of_the_bar() -> None:
    options: dict[str, Any] = {"tensor": "layers.0.\x1b[2Jw", "nonfinite": 3, "rank": 1, "world": 4}
    text = shown("plain", io.StringIO(), wrote=GIB, **options)
    assert text.startswith("out [2/4]: 25.0 % ") and "), 3 NaN or Inf, 30 s left, " in text
    assert text.endswith(" GiB memory, layers.0.?[2Jw\n") or "\x1b" not in text


def test_nothing_written_yet() -> None:
    assert shown("plain", io.StringIO()).endswith("), starting\n")


def test_permanent_lines_begin_at_the_margin() -> None:
    for mode, text in (("bar", "\r\x1b[Kout: continuing\n"), ("plain", "out: continuing\n")):
        stream = Terminal()
        Progress(mode, 1, "x", stream).print_line("out: continuing")
        assert stream.getvalue() == text


def test_earlier_work_counts_for_the_total_but_not_for_the_rate() -> None:
    text = shown("plain", io.StringIO(), wrote=GIB, done_before=2 * GIB)
    assert "75.0 %" in text and "0.10 out" in text and "10 s left" in text


def test_json_lines_parse() -> None:
    stream = io.StringIO()
    counter = Progress("json", 100, "x", stream)
    counter.wrote(50)
    counter._show()
    counter.event("resumed", percent=3.5, name="a\x1b[31m")
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first["event"] == "progress" and first["percent"] == 50.0
    assert {"bytes_in", "bytes_out", "gib_s_in", "gib_s_out", "elapsed_s", "left_s"} <= set(first)
    assert first["memory_bytes"] > 1 << 20 and (first["rank"], first["world"]) == (0, 1)
    assert (first["tensor"], first["nonfinite"]) == ("", 0)
    assert second == {"event": "resumed", "percent": 3.5, "name": "a\x1b[31m"}
    assert "\x1b" not in stream.getvalue()


def test_events_are_for_json_alone() -> None:
    stream = io.StringIO()
    Progress("plain", 100, "x", stream).event("resumed")
    assert stream.getvalue() == ""


VISIBLE = re.compile(r"\x1b\[[0-9;]*[mK]|\r")


NAMES = ["", "w", "model.layers.31.mlp.experts.127.down_proj.weight", "\x1b[31mred"]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 160, 300])
@pytest.mark.parametrize("title", ["x", "a-rather-long-name-of-a-folder-" * 4])
@pytest.mark.parametrize("tensor", NAMES)
def test_a_bar_fits_its_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: int, title: str, tensor: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for nonfinite in (0, 10**6):
        options: dict[str, Any] = {"title": title, "tensor": tensor, "nonfinite": nonfinite}
        text = shown("bar", Terminal(), read=GIB, wrote=GIB, **options)
        assert len(VISIBLE.sub("", text)) < max(columns, 12 + 9)
        assert text.startswith("\r\x1b[K") and "\n" not in text
        assert text.count("\x1b[36m") == text.count("\x1b[0m") == 1, "colours end where they begin"
        assert "\x1b[31m" not in text


@pytest.mark.parametrize(
    ("columns", "there", "not_there"),
    [
        (40, ["25.0 %", "30 s left"], ["GiB"]),
        (60, ["25.0 %", "30 s left", "0.10 GiB/s in, 0.10 out"], ["down_proj"]),
        (80, ["30 s left", "0.10 GiB/s in, 0.10 out", "GiB memory"], ["down_proj"]),
        (160, ["GiB/s in", "GiB memory", "model.layers.31.mlp.experts.127.down_proj.weight"], []),
    ],
)
def test_contents_of_a_bar_by_width(
    monkeypatch: pytest.MonkeyPatch, columns: int, there: list[str], not_there: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    options: dict[str, Any] = {"title": "merged", "tensor": NAMES[2]}
    text = VISIBLE.sub("", shown("bar", Terminal(), read=GIB, wrote=GIB, **options))
    assert all(word in text for word in there), text
    assert not any(word in text for word in not_there), text
    assert text.count("█") + text.count("·") >= 5
    bar = VISIBLE.sub("", shown("bar", Terminal(), read=GIB, wrote=GIB, nonfinite=7, **options))
    assert "7 NaN or Inf" in bar, "before everything else"


def test_colors_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in shown("bar", Terminal(), wrote=GIB)
    monkeypatch.setenv("TERM", "dumb")
    assert Progress("auto", 1, "x", Terminal()).mode == "plain"


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


def test_lines_are_printed_periodically_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_PERIOD_S", 0.005)
    stream = io.StringIO()
    threads = threading.active_count()
    with Progress("plain", 100, "x", stream) as counter:
        counter.wrote(100)
        while "100.0 %" not in stream.getvalue().partition("\n")[2]:
            pass
    assert threading.active_count() == threads
    assert "100.0 %" in stream.getvalue()


def test_off_prints_nothing() -> None:
    stream = Terminal()
    with Progress("off", 100, "x", stream) as counter:
        counter.wrote(100)
    assert stream.getvalue() == ""


def test_nothing_to_write_is_complete() -> None:
    assert Progress("off", 0, "x", io.StringIO()).percent == 100.0
