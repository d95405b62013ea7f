"""What a run shows while it runs: a bar in a terminal, plain lines in a log, JSON for programs."""

from __future__ import annotations

import json
import mmap
import shutil
import sys
import threading
import time
from typing import TextIO

GIB = 1 << 30
PLAIN_PERIOD_S = 10.0
BAR_PERIOD_S = 0.2


class Progress:
    """Counts bytes and prints them to stderr until `close`. Counting is safe from any thread."""

    def __init__(self, mode: str, total_out: int, title: str, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        tty = self.stream.isatty()
        self.mode = ("bar" if tty else "plain") if mode == "auto" else mode
        self.total_out = total_out
        self.title = title
        self._counts = memoryview(bytearray(16)).cast("Q")  # bytes in and out of each process
        self._mine = 0
        self.done_before = 0  # written by an earlier run
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        if self.mode != "off":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.mode == "bar":
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def several(self, processes: int) -> None:
        """Count what so many processes do that are forked from now on."""
        self._counts = memoryview(mmap.mmap(-1, 16 * (processes + 1))).cast("Q")

    def as_process(self, number: int) -> None:
        """In the process of that number, from 1: count for the parent, and print nothing."""
        self._mine, self.mode, self._lock = 2 * number, "off", threading.Lock()

    def read(self, count: int) -> None:
        with self._lock:
            self._counts[self._mine] += count

    def wrote(self, count: int) -> None:
        with self._lock:
            self._counts[self._mine + 1] += count

    @property
    def bytes_in(self) -> int:
        return sum(self._counts[::2])

    @property
    def bytes_out(self) -> int:
        return sum(self._counts[1::2])

    @property
    def percent(self) -> float:
        done = self.done_before + self.bytes_out
        return 100.0 * done / self.total_out if self.total_out else 100.0

    def facts(self) -> dict[str, float]:
        """The numbers of this moment: bytes, GiB/s in and out, seconds left (-1: not known yet)."""
        seconds = max(1e-9, time.monotonic() - self._began)
        left = self.total_out - self.done_before - self.bytes_out
        return {
            "percent": round(self.percent, 2),
            "bytes_in": self.bytes_in,
            "bytes_out": self.done_before + self.bytes_out,
            "gib_s_in": round(self.bytes_in / GIB / seconds, 3),
            "gib_s_out": round(self.bytes_out / GIB / seconds, 3),
            "elapsed_s": round(seconds, 2),
            "left_s": round(left * seconds / self.bytes_out, 1) if self.bytes_out else -1,
        }

    def event(self, kind: str, **facts: object) -> None:
        """One JSON line in `json` mode; nothing otherwise."""
        if self.mode == "json":
            self.stream.write(json.dumps({"event": kind, **facts}) + "\n")
            self.stream.flush()

    def _run(self) -> None:
        period = BAR_PERIOD_S if self.mode == "bar" else PLAIN_PERIOD_S
        if self.mode == "json":
            period = 1.0
        while not self._over.wait(period):
            self._show()

    def _show(self) -> None:
        facts = self.facts()
        if self.mode == "json":
            self.event("progress", **facts)
            return
        rates = f"{facts['gib_s_in']:.2f} GiB/s in, {facts['gib_s_out']:.2f} out"
        left = duration(facts["left_s"]) + " left" if facts["left_s"] >= 0 else "starting"
        if self.mode == "plain":
            done = f"{facts['bytes_out'] / GIB:.2f} of {self.total_out / GIB:.2f} GiB"
            self.stream.write(f"{self.title}: {self.percent:.1f} % ({done}), {rates}, {left}\n")
        else:
            columns = shutil.get_terminal_size((80, 24)).columns
            tail = f" {self.percent:5.1f} %  {rates}  {left}"
            title = self.title[: max(0, columns - len(tail) - 12)]
            width = max(8, columns - len(title) - len(tail) - 3)
            # A line longer than the terminal would not be overwritten by the next.
            bar = _bar(self.percent / 100, width)
            self.stream.write(f"\r\x1b[K{title} {bar}{tail[: max(0, columns - width - 2)]}")
        self.stream.flush()


def duration(seconds: float) -> str:
    """`42 s`, `3:07 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _bar(fraction: float, width: int) -> str:
    """A bar with eighths of a cell, so that it moves smoothly."""
    eighths = int(max(0.0, min(1.0, fraction)) * width * 8)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return "\x1b[36m" + text + "\x1b[0m" + "·" * (width - len(text))
