"""Progress of a run: a bar in a terminal, plain lines in a log, JSON for programs."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from ..messages import HERE, print_line, printable, relative_paths
from ..units import GIB, duration
from .caller import Caller
from .machine import private_bytes, resident_bytes

PLAIN_PERIOD_S = 10.0
JSON_PERIOD_S = 1.0
BAR_PERIOD_S = 0.2
LEAST_BAR, LEAST_NAME = 6, 16
CLEAR = "\r\x1b[K"  # the line of the cursor

COUNTS = 4
"""Counters of a process: bytes in, bytes out, number of the last tensor (from 1), NaN and Inf."""


class Progress:
    """Counts bytes and prints them to stderr until `close`. Counting is safe from any thread.

    `names` are the tensors that `wrote` reports by number. With a `caller` nothing is printed: it
    gets the bytes, and `on_failure` is called if that raises an error, which `close` raises again.
    """

    def __init__(
        self,
        mode: str,
        total_out: int,
        title: str,
        stream: TextIO | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.stream = stream or sys.stderr
        self.caller = caller
        self.on_failure: Callable[[str], object] = str
        self._failure: BaseException | None = None
        self.mode = "off" if caller else mode
        if self.mode == "auto":
            tty = self.stream.isatty() and os.environ.get("TERM") != "dumb"
            self.mode = "bar" if tty else "plain"
        self.total_out = total_out
        self.title = title
        self.rank, self.world = 0, 1
        self.names: Sequence[str] = ()
        self._counts = memoryview(bytearray(8 * COUNTS)).cast("Q")
        self._mine = 0
        self.processes: Sequence[int] = ()  # others that count for this one
        self.done_before = 0  # written by an earlier run
        self._begun = False
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        """Print the first event of a run in `json` mode, unless it has been printed."""
        if not self._begun:
            self._begun = True
            done, total = self.done_before, self.total_out
            ranks = {"rank": self.rank, "world": self.world}
            self.event("begin", title=self.title, bytes_total=total, bytes_done=done, **ranks)

    def __enter__(self) -> Progress:
        self.begin()
        if self.mode != "off" or (self.caller and self.caller.progress):
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.mode == "bar":
            self._write(CLEAR)
        if kind is None:
            self._call()
        if self._failure is not None:
            raise self._failure

    def count_processes(self, processes: int) -> None:
        """Include the counts of so many processes, to be forked after this call."""
        self._counts = memoryview(mmap.mmap(-1, 8 * COUNTS * (processes + 1))).cast("Q")

    def as_process(self, number: int) -> None:
        """Count for the parent and print nothing; called in a child, numbered from 1."""
        self._mine, self.mode, self._lock = COUNTS * number, "off", threading.Lock()

    def read(self, count: int) -> None:
        with self._lock:
            self._counts[self._mine] += count

    def wrote(self, count: int, tensor: int = -1, nonfinite: int = 0) -> None:
        """Count bytes written of a tensor, and the NaN and Inf in them."""
        with self._lock:
            self._counts[self._mine + 1] += count
            self._counts[self._mine + 2] = tensor + 1
            self._counts[self._mine + 3] += nonfinite

    @property
    def bytes_in(self) -> int:
        return sum(self._counts[::COUNTS])

    @property
    def bytes_out(self) -> int:
        return sum(self._counts[1::COUNTS])

    def restart_clock(self) -> None:
        """Measure rates from now on, without the time for loading and planning."""
        self._began = time.monotonic()

    @property
    def done(self) -> int:
        """Bytes of `total_out` that are finished."""
        return self.done_before + self.bytes_out

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.total_out if self.total_out else 100.0

    def facts(self) -> dict[str, Any]:
        """Return the current figures: bytes, GiB/s, seconds left (-1 if not known yet), …"""
        seconds = max(1e-9, time.monotonic() - self._began)
        left = max(0, self.total_out - self.done_before - self.bytes_out)
        last = max(self._counts[2::COUNTS])
        return {
            "percent": round(self.percent, 2),
            "bytes_in": self.bytes_in,
            "bytes_out": self.done_before + self.bytes_out,
            "gib_s_in": round(self.bytes_in / GIB / seconds, 3),
            "gib_s_out": round(self.bytes_out / GIB / seconds, 3),
            "elapsed_s": round(seconds, 2),
            "left_s": round(left * seconds / self.bytes_out, 1) if self.bytes_out else -1,
            "memory_bytes": resident_bytes() + sum(map(private_bytes, self.processes)),
            "tensor": self.names[last - 1] if 0 < last <= len(self.names) else "",
            "nonfinite": sum(self._counts[3::COUNTS]),
            "rank": self.rank,
            "world": self.world,
        }

    def event(self, kind: str, **facts: object) -> None:
        """Print a JSON line in `json` mode; nothing otherwise."""
        if self.mode == "json":
            self._write(json.dumps({"event": kind, **facts}) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning, or hand it to the caller."""
        if self.caller is not None:
            self.caller.warn(text)
        elif self.mode == "json":
            self.event("warning", text=text)
        else:
            self.print_line(f"warning: {printable(text)}")

    def print_line(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        shown = relative_paths(line, os.environ.get(HERE, ""))
        self._write((CLEAR if self.mode == "bar" else "") + shown + "\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    def _run(self) -> None:
        periods = {"bar": BAR_PERIOD_S, "off": BAR_PERIOD_S, "json": JSON_PERIOD_S}
        while not self._over.wait(periods.get(self.mode, PLAIN_PERIOD_S)):
            self._call() if self.caller else self._show()

    def _call(self) -> None:
        """Call the caller's function, until an error of it stops the merge."""
        if self.caller is None or self.caller.progress is None or self._failure is not None:
            return
        try:
            self.caller.progress(self.done_before + self.bytes_out, self.total_out)
        except BaseException as error:
            self._failure = error
            self.on_failure("stopped by the caller")

    def _show(self) -> None:
        facts = self.facts()
        if self.mode == "json":
            self.event("progress", **facts)
            return
        title = self.title + (f" [{self.rank + 1}/{self.world}]" if self.world > 1 else "")
        if self.mode == "plain":
            done = f"{self.done / GIB:.2f} of {self.total_out / GIB:.2f} GiB"
            details = [*(forms[0] for forms in _words(facts)), facts["tensor"]]
            text = printable(", ".join(filter(None, details)))
            self._write(f"{title}: {self.percent:.1f} % ({done}), {text}\n")
        else:
            self._write(CLEAR + _line(title, facts, _columns(self.stream)))


def print_end(
    mode: str, code: int, elapsed_s: float, error: str = "", program: str = "merge-worker"
) -> None:
    """Print the error that ends a command to stderr; in `json` mode the last event, of any end.

    Other modes print nothing at the end of a success.
    """
    if mode == "json":
        end = {"event": "end", "exit_code": code, "elapsed_s": round(elapsed_s, 2), "error": error}
        print(json.dumps(end), file=sys.stderr, flush=True)
    elif error:
        print_line(f"{program}: {error}", sys.stderr)


def print_event(mode: str, kind: str, text: str) -> None:
    """Print `warning: text` or a note to stderr; in `json` mode as an event."""
    if mode == "json":
        print(json.dumps({"event": kind, "text": text}), file=sys.stderr, flush=True)
    else:
        print_line(f"{kind}: {text}", sys.stderr)


def _words(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return details beside the percentage, most important first, each with shorter forms."""
    words: list[tuple[str, ...]] = []
    if facts["nonfinite"]:
        words.append((f"{facts['nonfinite']} NaN or Inf",))
    if facts["left_s"] < 0:
        return [*words, ("starting",)]
    words.append((f"{duration(facts['left_s'])} left",))
    rates = f"{facts['gib_s_in']:.2f}", f"{facts['gib_s_out']:.2f}"
    if facts["bytes_out"]:
        words.append((f"{rates[0]} GiB/s in, {rates[1]} out", f"{rates[0]} + {rates[1]} GiB/s"))
    else:
        words.append((f"{rates[0]} GiB/s",))
    if facts["memory_bytes"]:
        memory = f"{facts['memory_bytes'] / GIB:.2f} GiB"
        words.append((f"{memory} memory", memory))
    return words


def _line(title: str, facts: dict[str, Any], columns: int) -> str:
    """Return a line that fits into `columns`: a bar, and as many details as possible.

    A line longer than the terminal would not be overwritten by the next.
    """
    room = columns - 1
    tail = f" {facts['percent']:5.1f} %"
    title = title[: max(0, min(room - len(tail) - LEAST_BAR - 1, columns // 3))]
    for forms in _words(facts):
        left = room - len(title) - 1 - LEAST_BAR - len(tail) - 2
        tail += next((f"  {form}" for form in forms if len(form) <= left), "")
    name, left = printable(facts["tensor"]), room - len(title) - 1 - 2 * LEAST_BAR - len(tail) - 2
    if name and left >= min(len(name), LEAST_NAME):
        # The end of a name tells more than its beginning.
        tail += f"  {name if len(name) <= left else '…' + name[len(name) - left + 1 :]}"
    width = max(0, room - len(title) - 1 - len(tail))
    return f"{title} {_bar(facts['percent'] / 100, width)}{tail}"


def _columns(stream: TextIO) -> int:
    """Return the width of the terminal behind `stream`, which need not be standard output."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError, AttributeError):
        return shutil.get_terminal_size((80, 24)).columns


def _bar(fraction: float, width: int) -> str:
    """Draw a bar in eighths of a cell, so that it moves smoothly."""
    eighths = int(max(0.0, min(1.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    dots = "·" * (width - len(text))
    return text + dots if os.environ.get("NO_COLOR") else f"\x1b[36m{text}\x1b[0m{dots}"
