"""The log of a job: all of it, or as it grows; progress is folded, color are for terminals."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from ..backends.base import Status
from .records import Record

POLL_S = 1.0
ASK_EVERY_S = 60.0
# Colours, and what moves a cursor.
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
PROGRESS = re.compile(r": \d+(\.\d+)? % \(|^\{\"event\": \"progress\"|\d+%\|")
"""A line of the worker's, of its JSON, of tqdm's."""


def wants_color(target: TextIO) -> bool:
    return target.isatty() and not os.environ.get("NO_COLOR")


def clean(line: str, color: bool) -> str:
    """What a terminal would show of a line in the end."""
    kept = line.rstrip("\r\n").rpartition("\r")[2]
    if color:
        return re.sub(r"\x1b\[[0-9;]*[A-HJKSTf]", "", kept)
    return ESCAPES.sub("", kept)


def fold_progress(lines: Iterable[str], color: bool = False) -> Iterator[str]:
    """Of progress lines in a row the last."""
    held: str | None = None
    for line in lines:
        shown = clean(line, color)
        if PROGRESS.search(shown):
            held = shown
            continue
        if held is not None:
            yield held
            held = None
        yield shown
    if held is not None:
        yield held


def files(record: Record) -> list[Path]:
    """The log, and what a scheduler kept to itself until the end."""
    log = Path(record.log)
    found = [log, log.with_suffix(".end")]
    return [path for path in found if path.is_file() and path.stat().st_size]


def lines(record: Record) -> Iterator[str]:
    for path in files(record):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from file


def is_of_earlier_job(record: Record) -> bool:
    """Whether the log holds only what an earlier job for the same OUT wrote."""
    last = max((path.stat().st_mtime for path in files(record)), default=0.0)
    return record.exit_code() is None and last < record.submitted_s


def show(record: Record, target: TextIO) -> bool:
    """False if there is nothing yet."""
    if not files(record):
        return False
    for line in fold_progress(lines(record), wants_color(target)):
        print(line, file=target)
    return True


def size(record: Record) -> int:
    try:
        return Path(record.log).stat().st_size
    except OSError:
        return 0


def follow(
    record: Record,
    target: TextIO,
    ask: Callable[[Record], Status],
    position: int = 0,
    poll_s: float = POLL_S,
) -> int | None:
    """Copy the log from a position on as it grows, until the job is over. Its exit code, None if it
    left none."""
    screen = Screen(target)
    asked, said = 0.0, None
    while True:
        over = record.exit_code() is not None
        if time.monotonic() - asked > ASK_EVERY_S or not asked:
            asked = time.monotonic()
            status = ask(record)
            # A job that was started once more has left a code before.
            over = status.state.has_ended or (over and status.state.value != "queued")
            if status.detail != said and not over:
                said = status.detail
                print(f"merge-launch: {status.state.value} ({said})", file=sys.stderr)
        position = copy_new_text(Path(record.log), screen, position)
        if over:
            screen.end()
            return record.exit_code()
        time.sleep(poll_s)


def copy_new_text(log: Path, screen: Screen, position: int) -> int:
    """What the log holds from a position on; the position after it."""
    try:
        with log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:
                position = 0  # Another run has begun it anew.
            file.seek(position)
            text = file.read()
    except FileNotFoundError:
        return position
    screen.write(text)
    return position + len(text)


class Screen:
    """Whole lines as they come; in a terminal, progress stays on one."""

    def __init__(self, target: TextIO) -> None:
        self.target = target
        self.terminal = target.isatty()
        self._rest = b""
        self._on_progress = False

    def write(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line.decode(errors="replace"))
        self.target.flush()

    def end(self) -> None:
        if self._rest:
            self._line(self._rest.decode(errors="replace"))
        if self._on_progress:
            self.target.write("\n")
        self.target.flush()

    def _line(self, line: str) -> None:
        shown = clean(line, wants_color(self.target))
        progress = self.terminal and PROGRESS.search(shown) is not None
        before = "\r\x1b[K" if self._on_progress else ""
        self.target.write(f"{before}{shown}" + ("" if progress else "\n"))
        self._on_progress = progress
