"""Ending early: the first reason counts, and handlers are restored."""

import os
import signal
import threading
import time

import pytest

from merge_worker.errors import Stopped
from merge_worker.system.signals import SIGNALS, StopFlag, stop_at_deadline, stop_on_signal


def wait(stop: StopFlag) -> None:
    deadline = time.monotonic() + 10
    while not stop.is_set() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_the_first_reason_counts() -> None:
    stop = StopFlag()
    assert not stop.is_set()
    stop.set("one")
    stop.set("two")
    assert stop.is_set() and stop.reason == "one"


@pytest.mark.parametrize("kind", SIGNALS)
def test_signals(kind: signal.Signals) -> None:
    before = [signal.getsignal(kind) for kind in SIGNALS]
    stop = StopFlag()
    with pytest.raises(Stopped, match=f"^stopped by {kind.name}; .*resume$"), stop_on_signal(stop):
        os.kill(os.getpid(), kind)
        wait(stop)
    assert stop.reason == f"stopped by {kind.name}"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "nothing is left that ends it"
    assert [signal.getsignal(kind) for kind in SIGNALS] == before


def test_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def inside() -> None:
        with stop_on_signal(StopFlag()):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_deadline_counts_from_the_start_of_the_command() -> None:
    stop = StopFlag()
    with stop_at_deadline(stop, 60.0, time.monotonic() - 59.95):
        wait(stop)
    assert stop.reason == "stopped at the deadline"


def test_no_deadline_and_one_far_away() -> None:
    stop = StopFlag()
    before = threading.active_count()
    with (
        stop_at_deadline(stop, None, time.monotonic()),
        stop_at_deadline(stop, 3600.0, time.monotonic()),
    ):
        pass
    assert not stop.is_set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before, "the timer is cancelled"
