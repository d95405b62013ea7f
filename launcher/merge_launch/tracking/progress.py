"""How far a running job is: the last progress lines of the worker in its log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from merge_worker.units import duration

from .. import backends
from ..backends.base import JobState, Service, Status
from . import logs
from .records import Record

BEGUN = "merge-launch: begun on "
DONE = re.compile(r": \d+ tensors? merged, ")
PLAIN = re.compile(r"(.*?): (\d+(?:\.\d+)?) % \([\d.]+ of [\d.]+ GiB\)(.*)")
LEFT = re.compile(r", ([\d:]+ \w+) left")
"""The time left in a plain line: the worker's `duration`."""
TAIL = 1 << 16
"""Bytes of a log that are read: thousands of seconds of progress, which has a line every 10 s."""


class Progress(NamedTuple):
    """Percent of the result that is written, and the time that is left, "" if not known yet."""

    percent: float
    left: str

    def __str__(self) -> str:
        return f"{self.percent:.0f} %" + (f", {self.left} left" if self.left else "")


def progress_of(record: Record, status: Status) -> Progress | None:
    """Return the progress of a running job; None if it has not begun, or its log is not here.

    Raises LauncherError if a service does not give its log.
    """
    if status.state is not JobState.RUNNING:
        return None
    backend = backends.get(record.backend)
    if isinstance(backend, Service):
        return read(backend.log_lines(record.job_id, follow=False))
    return None if logs.is_of_earlier_job(record) else read(_tail(record))


def _tail(record: Record) -> Iterator[str]:
    """Yield the last lines of a log, none before those of this job."""
    try:
        with Path(record.log).open("rb") as file:
            size = logs.size_of(record.log)
            file.seek(max(record.log_bytes if record.log_bytes <= size else 0, size - TAIL))
            yield from file.read().decode(errors="replace").splitlines()
    except OSError:
        return


def read(lines: Iterable[str]) -> Progress | None:
    """Return what the lines of a log say last; of several processes, what the slowest says."""
    latest: dict[str, Progress] = {}
    for line in lines:
        shown = logs.clean(line, color=False)
        if shown.startswith(BEGUN) or DONE.search(shown):
            latest.clear()
        elif found := _of_line(shown):
            title, progress = found
            latest[title] = progress
    return min(latest.values(), key=lambda progress: progress.percent, default=None)


def _of_line(line: str) -> tuple[str, Progress] | None:
    if line.startswith('{"event": "progress"'):
        try:
            facts = json.loads(line)
            left = duration(facts["left_s"]) if facts["left_s"] >= 0 else ""
            return str(facts["rank"]), Progress(float(facts["percent"]), left)
        except (ValueError, TypeError, LookupError):
            return None
    if (match := PLAIN.fullmatch(line)) is None:
        return None
    left_in_words = LEFT.search(match[3])
    return match[1], Progress(float(match[2]), left_in_words[1] if left_in_words else "")
