"""Read-ahead hints to the kernel, so that the storage works while the processor computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate

from ..checkpoint.reader import Files
from ..errors import InputError
from ..tensors.source import bytes_read, stored_inputs
from .work import Work

WINDOW = 1 << 30
"""Bytes ahead of the lanes: as many as a fast disk reads while torch loads."""


class ReadAhead:
    """A thread that walks the work in order, at most `WINDOW` bytes ahead of the lanes."""

    def __init__(self, files: Files, work: Sequence[Work]) -> None:
        self._files = files
        self._work = work
        sizes = (sum(bytes_read(source) for source in item.step.sources) for item in work)
        self._before = list(accumulate(sizes, initial=0))
        self._index = {item.number: i for i, item in enumerate(work)}
        self._reached = 0
        self._moved = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify()
        self._thread.join()

    def reached(self, number: int) -> None:
        """Note that the lanes begin the step `number`."""
        with self._moved:
            self._reached = self._index[number]
            self._moved.notify()

    def _run(self) -> None:
        for number, item in enumerate(self._work):
            with self._moved:
                while not self._stopped and self._too_far(number):
                    self._moved.wait()
                if self._stopped:
                    return
            for info in (info for source in item.step.sources for info in stored_inputs(source)):
                try:
                    self._files.will_need(info.file, info.offset, min(info.nbytes, WINDOW))
                except (InputError, OSError):
                    return  # only a hint is lost; the lane that reads reports the error

    def _too_far(self, number: int) -> bool:
        return self._before[number] - self._before[self._reached] > WINDOW
