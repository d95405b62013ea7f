"""Inputs fetched ahead of the lanes, in the order of reading: by the kernel, and from the Hub."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from ..checkpoint.reader import Files
from ..errors import InputError
from ..messages import printable
from ..system.progress import Progress
from ..units import size
from .work import Work

WINDOW = 1 << 30
"""Bytes to read ahead of the lanes: as many as a fast disk reads while torch loads."""

DOWNLOADS = 2
"""Files downloaded at a time: the client opens several connections for each."""

MOST_AHEAD = 4
"""Files downloaded ahead of the lanes where files behind them are removed."""


class ReadAhead:
    """A thread that hints to the kernel what is read next, at most `window` bytes ahead."""

    def __init__(self, files: Files, work: Sequence[Work], window: int = WINDOW) -> None:
        self._files, self._work, self._window = files, work, window
        self._before = list(accumulate((item.step.bytes_read for item in work), initial=0))
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
        for before, item in zip(self._before, self._work, strict=False):
            with self._moved:
                while not self._stopped and before - self._before[self._reached] > self._window:
                    self._moved.wait()
                if self._stopped:
                    return
            for tensor in item.step.stored_inputs():
                try:
                    count = min(tensor.nbytes, self._window)
                    self._files.will_need(tensor.file, tensor.offset, count)
                except (InputError, OSError):
                    return  # only a hint is lost; the lane that reads reports the error


class Fetcher:
    """Downloads missing files of the work. With `prune`, files are removed once they are read."""

    def __init__(self, files: Files, work: Sequence[Work], progress: Progress, prune: bool) -> None:
        self._files, self._progress, self._prune = files, progress, prune
        self._reads = {
            item.number: list(dict.fromkeys(tensor.file for tensor in item.step.stored_inputs()))
            for item in work
        }
        self._left = Counter(path for paths in self._reads.values() for path in paths)
        self._order = [path for path in self._left if files.hub.is_not_downloaded(path)]
        self._next = iter(self._order)
        self._ahead = 0
        self._changed = threading.Condition()
        self._stopped = False

    @property
    def busy(self) -> bool:
        """Whether any file is to be downloaded or removed."""
        return self._prune or bool(self._order)

    def __enter__(self) -> Fetcher:
        for _ in range(min(DOWNLOADS, len(self._order))):
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def finished(self, number: int) -> None:
        """Note that the lanes have finished a step."""
        if not self._prune:
            return
        with self._changed:
            self._left.subtract(self._reads[number])
            done = [path for path in self._reads[number] if self._left[path] == 0]
            self._ahead -= sum(path in self._order for path in done)
            self._changed.notify_all()
        for path in done:
            self._files.discard(path)
            self._files.hub.remove_download(path)

    def _run(self) -> None:
        while (path := self._following()) is not None:
            try:
                self._report(path)
                self._files.hub.download(path)
            except InputError:
                return  # the lane that reads the file reports the error

    def _following(self) -> str | None:
        with self._changed:
            while self._prune and self._ahead >= MOST_AHEAD and not self._stopped:
                self._changed.wait()
            path = None if self._stopped else next(self._next, None)
            self._ahead += path is not None
            return path

    def _report(self, path: str) -> None:
        model, file, count = self._files.hub.describe(path)
        if self._progress.mode == "json":
            self._progress.event("downloading", model=model, file=file, bytes=count)
        elif self._progress.mode != "off":
            # In one call, since several of these threads print.
            self._progress.print_line(f"downloading {model}: {printable(file)} ({size(count)})")
