"""Logs as people read them, and what of them says why."""

import io
from pathlib import Path

import pytest

from merge_launch.backends.base import JobState, Status
from merge_launch.table import wants_color
from merge_launch.tracking import explain, logs
from merge_launch.tracking.logs import Screen
from merge_launch.tracking.records import Record

BAR = "out: {} % (1.00 of 4.00 GiB), 1.00 GiB/s in, 0.50 out, 5 s left\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(folder: Path) -> Record:
    return Record("5", "pbs", "", str(folder / "out"), str(folder / "out.log"))


def test_progress_in_a_row_is_its_last_line() -> None:
    lines = ["begun\n", *(BAR.format(n) for n in (10.0, 20.5, 30.0)), "warning\n", BAR.format(40.0)]
    assert list(logs.fold_progress(lines)) == [
        "begun",
        BAR.format(30.0).rstrip(),
        "warning",
        BAR.format(40.0).rstrip(),
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain\n", "plain"),
        ("\x1b[31mred\x1b[0m\n", "red"),
        ("10%\r20%\rdone\n", "done"),
        ("\x1b[2K\x1b[1Gx\x1b]0;title\x07y\n", "xy"),
        ("windows\r\n", "windows"),
    ],
)
def test_lines_as_a_terminal_leaves_them(line: str, shown: str) -> None:
    assert logs.clean(line, color=False) == shown


def test_colors_are_for_terminals_that_want_them(monkeypatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_color(Terminal()) and not wants_color(io.StringIO())
    assert logs.clean("\x1b[31mred\x1b[0m\x1b[K", color=True) == "\x1b[31mred\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_color(Terminal())


def test_a_terminal_keeps_progress_on_one_line() -> None:
    target = Terminal()
    screen = Screen(target)
    for text in ("begun\nout: 1", "0.0 % (x\nout: 20.0 % (x\n", "done"):
        screen.write(text.encode())
    screen.end()
    assert target.getvalue() == "begun\nout: 10.0 % (x\r\x1b[Kout: 20.0 % (x\r\x1b[Kdone\n"


def test_what_the_scheduler_adds_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "out.log").write_text("merged\n")
    (tmp_path / "out.end").write_text("=>> PBS: job killed: walltime 60 exceeded limit 50\n")
    lines = ["merged\n", "=>> PBS: job killed: walltime 60 exceeded limit 50\n"]
    assert list(logs.lines(record(tmp_path))) == lines


def test_a_log_that_begins_anew_is_read_anew(tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    log.write_text("a line of the first run\n")
    screen = Screen(io.StringIO())
    position = logs.copy_new_text(log, screen, 0)
    log.write_text("second\n")
    logs.copy_new_text(log, screen, position)
    assert screen.target.getvalue() == "a line of the first run\nsecond\n"


def test_the_lines_that_name_a_fault() -> None:
    log = ["loading\n", "merge-worker: m2: no space left\n", BAR.format(3.0), "cleaning up\n", "\n"]
    assert explain.telling_lines(log) == ["merge-worker: m2: no space left"]
    assert explain.telling_lines(["a\n", "b\n", "c\n"]) == ["b", "c"]
    log = ["merge-launch: begun on n1 at 12:00\n", "12.SC: line 9: /nope: No such file\n", "bye\n"]
    assert explain.telling_lines(log) == [log[1].rstrip()]
    assert len(explain.telling_lines(f"error {n}\n" for n in range(50))) == explain.LINES


@pytest.mark.parametrize("state", JobState)
def test_every_state_is_explained(state: JobState) -> None:
    sentences = explain.explain("5", Status(state, "its words"), None, [], [])
    assert sentences[0] in explain.STATES.values()
    assert "its words" in sentences
