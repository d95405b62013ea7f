"""Stops a run early and cleanly: on a signal of the scheduler, or before its walltime."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from ..errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SIGNALS_OUTSIDE = (signal.SIGTERM, signal.SIGUSR1)
"""Signals handled outside the stream, where SIGINT is Python's KeyboardInterrupt."""

GRACE_S = 4.0
"""Schedulers kill a job soon after the first signal, and some matrices take longer than that."""

RESUMES = "run the same command to resume"
BEGINS_ANEW = "run the same command again; it begins anew"
RESUMABLE = f"finished work is kept; {RESUMES}"


class StopFlag:
    """A flag set once, by any thread or signal handler; lanes check it between pieces."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = "stopped"

    def set(self, reason: str = "stopped") -> None:
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def error(self, percent: float) -> Stopped:
        """Return the error to raise after stopping at `percent`."""
        return Stopped(f"{self.reason} at {percent:.0f} %; {RESUMABLE}")


def exit_soon(reason: str, way_out: str = RESUMABLE) -> None:
    """Exit with code 75 after GRACE_S seconds, even if other threads are still running.

    Called by the main thread only. Files on the storage are consistent at any moment.
    """

    def leave(number: int, frame: object) -> None:
        os.write(2, f"merge-worker: {reason}; {way_out}\n".encode())
        os._exit(Stopped.exit_code)

    signal.signal(signal.SIGALRM, leave)
    signal.setitimer(signal.ITIMER_REAL, GRACE_S)


def stop_requested() -> bool:
    """Whether a signal has asked this process to end."""
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def cancel_exit() -> None:
    """Cancel the forced exit: the process is ending normally."""
    signal.setitimer(signal.ITIMER_REAL, 0)


class Signals:
    """Handlers for the time outside the stream: the first signal raises Stopped.

    Signals are ignored once all is `over`: only the report is left, which takes a while if the
    storage is busy, and nothing would catch the error.
    """

    def __init__(self) -> None:
        self.over = False
        self.way_out = RESUMES  # the command sets BEGINS_ANEW if it keeps nothing

    def take(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for kind in SIGNALS_OUTSIDE:
                signal.signal(kind, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        if self.over:
            return
        self.over = True
        name = signal.Signals(number).name
        exit_soon(f"stopped by {name}", self.way_out)
        raise Stopped(f"stopped by {name}; {self.way_out}")


@contextlib.contextmanager
def stop_on_signal(stop: StopFlag) -> Iterator[None]:
    """Set `stop` on SIGTERM, SIGINT and SIGUSR1 while the block runs. Raises Stopped after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(number: int, frame: object) -> None:
        stop.set(f"stopped by {signal.Signals(number).name}")
        exit_soon(stop.reason)

    before = {kind: signal.signal(kind, handle) for kind in SIGNALS}
    try:
        yield
    finally:
        cancel_exit()
        for kind, handler in before.items():
            signal.signal(kind, handler)
    if stop.is_set():
        raise Stopped(f"{stop.reason}; {RESUMABLE}")


@contextlib.contextmanager
def stop_at_deadline(stop: StopFlag, deadline_s: float | None, began: float) -> Iterator[None]:
    """Set `stop` when `deadline_s` seconds have passed since `began` (of the monotonic clock)."""
    if deadline_s is None:
        yield
        return
    left = max(0.0, deadline_s - (time.monotonic() - began))
    timer = threading.Timer(left, stop.set, ["stopped at the deadline"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
