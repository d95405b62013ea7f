"""The log of a job, whole or as it grows, with progress folded and colors for terminals only."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from merge_worker.messages import printable

from ..backends.base import Status
from ..table import wants_color
from .records import Record
from .status import FORGOTTEN

POLL_S = 1.0
ASK_EVERY_S = 60.0
ASK_AGAIN_S = 5.0
"""For a job that left an exit code, or that is forgotten: its exit code may still be on its way."""
# Colors and cursor movements.
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
PROGRESS = re.compile(r": \d+(\.\d+)? % \(|^\{\"event\": \"progress\"|\d+%\|")
"""Matches progress lines of the worker, of its JSON output and of tqdm."""


def clean(line: str, color: bool) -> str:
    """Return the text that a terminal finally shows for a line."""
    kept = line.rstrip("\r\n").rpartition("\r")[2]
    if color:
        return re.sub(r"\x1b\[[0-9;]*[A-HJKSTf]", "", kept)
    return ESCAPES.sub("", kept)


def fold_progress(lines: Iterable[str], color: bool = False) -> Iterator[str]:
    """Yield lines, keeping only the last of consecutive progress lines."""
    shown = (clean(line, color) for line in lines)
    for is_progress, run in itertools.groupby(shown, lambda line: bool(PROGRESS.search(line))):
        if is_progress:
            yield from deque(run, maxlen=1)
        else:
            yield from run


def files(record: Record) -> list[Path]:
    """Return the log, and the output that a scheduler copies at the end, if they have content."""
    log = Path(record.log)
    return [
        path for path in (log, log.with_suffix(".end")) if path.is_file() and path.stat().st_size
    ]


def lines(record: Record) -> Iterator[str]:
    """Yield the lines of the log so far."""
    for path in files(record):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from file


def is_of_earlier_job(record: Record) -> bool:
    """Return whether the log was written only by an earlier job for the same OUT."""
    return record.exit_code() is None and size_of(record.log) == record.log_bytes


def size_of(log: str) -> int:
    """Return the size of a log in bytes, 0 if there is none."""
    try:
        return Path(log).stat().st_size
    except OSError:
        return 0


def follow(
    record: Record, target: TextIO, ask: Callable[[Record], Status], position: int = 0
) -> Status:
    """Copy the log from a position on as it grows, until the job has ended. Return its status."""
    screen = Screen(target)
    code: int | None = None
    shown, forgotten, ask_at_s = None, 0, 0.0
    while True:
        left = record.exit_code()
        if time.monotonic() >= ask_at_s or left != code:
            status, code = ask(record), left
            # An exit code may also be that of an earlier run: the scheduler knows.
            forgotten = forgotten + 1 if status == FORGOTTEN else 0
            ended = status.state.has_ended or forgotten > 1
            soon = code is not None or forgotten
            ask_at_s = time.monotonic() + (ASK_AGAIN_S if soon else ASK_EVERY_S)
            if status.detail != shown and not ended:
                shown = status.detail
                print(f"merge-launch: {status.state.value} ({printable(shown)})", file=sys.stderr)
        position = copy_new_text(Path(record.log), screen, position)
        if ended:
            screen.end()
            return status
        time.sleep(POLL_S)


def copy_new_text(log: Path, screen: Screen, position: int) -> int:
    """Show the log from a position on; return the position after it."""
    try:
        with log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < position:
                position = 0  # Another run has truncated it.
            file.seek(position)
            text = file.read()
    except FileNotFoundError:
        return position
    screen.write(text)
    return position + len(text)


class Screen:
    """A printer of whole lines; in a terminal, progress stays on one line."""

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
