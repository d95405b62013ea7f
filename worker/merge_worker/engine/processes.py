"""Several processes for one run where the maths is the processor's.

Threads of one process queue for the interpreter's lock: methods of many short steps took as long
with sixteen of them as with two. So a run with several processors forks when torch is loaded. Its
processes take batches of tensors from a pipe, write to the files that the parent has opened, and
tell it how they ended; the parent shows the progress and finishes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import errors
from ..checkpoint.reader import Files
from ..errors import Stopped, WorkerError
from ..planning.step import pieces
from ..system.progress import Progress
from ..system.signals import GRACE_S, StopFlag, stop_on_signal
from ..tensors.source import stored_inputs
from .work import Work, cost

BATCHES_EACH = 64
"""As many for each process, so that all end at about the same time."""

LOOK_S = 0.2

HINTED = 64 << 20
"""Bytes of a source to tell of at most: there are several sources, tensors and processes."""

TASKS = Path("/proc/self/task")
"""The threads of this process, where the system tells them."""

Do = Callable[[Iterable[Work]], list[str]]
"""Does the work; returns the names of differing copies."""

Start = Callable[[int, StopFlag], Do]
"""Makes ready in the process of that number, from 0."""


def can_fork() -> bool:
    """Whether a process can be forked: no library has threads here that the fork would lose."""
    try:
        native = len(list(TASKS.iterdir()))
    except OSError:
        return False
    return native == threading.active_count()


def with_readahead(work: Iterable[Work], files: Files) -> Iterator[Work]:
    """The same; the kernel is told of each when it is taken, while earlier ones are at work."""
    for item in work:
        # Once of a tensor that several share: who reads its first part tells.
        for source in item.step.sources if item.todo[0].first == 0 else ():
            for info in stored_inputs(source):
                files.will_need(info.file, info.offset, min(info.nbytes, HINTED))
        yield item


@dataclass
class WorkerProcesses:
    """The processes. Made before there is an accelerator's context, or any thread of a library."""

    work: Sequence[Work]
    count: int
    progress: Progress
    start: Start
    _answers: dict[int, int] = field(default_factory=dict)  # process id by its pipe
    _alive: int = -1

    def __post_init__(self) -> None:
        self.batches = batches(self.work, self.count * BATCHES_EACH)
        self.progress.count_processes(self.count)
        taken, give = os.pipe()
        watch, self._alive = os.pipe()
        # All fit into the pipe, which holds 64 KiB.
        os.write(give, b"".join(n.to_bytes(2, "little") for n in range(len(self.batches))))
        os.close(give)
        sys.stdout.flush()
        sys.stderr.flush()
        for number in range(self.count):
            answer, tell = os.pipe()
            process = _fork()
            if process == 0:
                os.close(self._alive)
                self._live(number, taken, watch, tell)
            os.close(tell)
            self._answers[answer] = process
        self.progress.processes = list(self._answers.values())
        os.close(taken)
        os.close(watch)

    def _live(self, number: int, taken: int, watch: int, tell: int) -> None:
        """All of the life of a process; does not return."""
        told: dict[str, Any] = {}
        try:
            self.progress.as_process(number + 1)
            stop = StopFlag()
            with stop_on_signal(stop):
                threading.Thread(target=_orphaned, args=(watch, stop), daemon=True).start()
                told["differing"] = self.start(number, stop)(self._taken(taken))
        except WorkerError as error:
            told |= {"kind": type(error).__name__, "text": str(error)}
        except BaseException:
            traceback.print_exc()
            told["kind"] = ""
        finally:
            os.write(tell, json.dumps(told).encode())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _taken(self, pipe: int) -> Iterator[Work]:
        """The work of one batch after the other, until nobody has more to give."""
        while word := os.read(pipe, 2):
            yield from self.batches[int.from_bytes(word, "little")]

    def wait(self, stop: StopFlag) -> list[str]:
        """The names of differing copies, at their end. The first error of any; Stopped."""
        told: list[dict[str, Any]] = []
        asked = False
        while self._answers:
            ready, _, _ = select.select(list(self._answers), [], [], LOOK_S)
            for answer in ready:
                told.append(self._told(answer))
            if not asked and (stop.is_set() or any("kind" in one for one in told)):
                asked = True
                self._ask_to_stop()
        os.close(self._alive)
        # One that was stopped because of another's error is not the reason.
        failed = [one for one in told if "kind" in one]
        for one in sorted(failed, key=lambda one: one["kind"] == Stopped.__name__):
            if stop.is_set():
                break
            raise _error(one)
        if stop.is_set():
            raise stop.error(self.progress.percent)
        return list(dict.fromkeys(name for one in told for name in one["differing"]))

    def _told(self, answer: int) -> dict[str, Any]:
        """What a process says at its end."""
        process = self._answers.pop(answer)
        with open(answer, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(process, 0)
        if text:
            return dict(json.loads(text))
        ended = os.waitstatus_to_exitcode(status)
        what = f"a process of the merge was ended by signal {-ended}"
        more = ", as the kernel does when memory is short" if ended == -signal.SIGKILL else ""
        text_of = f"{what}{more}; nothing is lost, run the same command again to continue"
        return {"kind": Stopped.__name__, "text": text_of}

    def _ask_to_stop(self) -> None:
        for process in self._answers.values():
            os.kill(process, signal.SIGTERM)


def _fork() -> int:
    with warnings.catch_warnings():
        # Newer Pythons warn of threads; no lock of those that are here is used afterwards.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _error(told: dict[str, Any]) -> Exception:
    if told["kind"]:
        kind: type[WorkerError] = getattr(errors, told["kind"])
        return kind(told["text"])
    return RuntimeError("a process of the merge failed; its traceback is above")


def _orphaned(watch: int, stop: StopFlag) -> None:
    """Nobody writes to the pipe: it ends when the parent does."""
    os.read(watch, 1)
    stop.set("stopped, since the process that began it is gone")
    time.sleep(GRACE_S)
    os._exit(Stopped.exit_code)


def batches(work: Sequence[Work], most: int) -> list[list[Work]]:
    """Runs of the work of about the same cost; what costs much by itself comes first."""
    share = max(1, sum(map(_cost, work)) // most)
    priced = [(_cost(part), part) for item in work for part in _parts(item, share)]
    heavy = [(price, place) for place, (price, _) in enumerate(priced) if price > share]
    found = [[priced[place][1]] for _, place in sorted(heavy, key=lambda one: (-one[0], one[1]))]
    filled = share
    for price, item in priced:
        if price > share:
            continue
        if filled + price > share:
            found.append([])
            filled = 0
        found[-1].append(item)
        filled += price
    return found


def _parts(item: Work, share: int) -> Iterator[Work]:
    """A tensor in parts, where none needs to know of the others."""
    whole, blocks = _cost(item), sum(piece.blocks for piece in item.todo)
    if item.step.reads > 1 or whole <= share or not blocks:
        yield item
        return
    each = max(1, blocks * share // whole)
    for run in item.todo:
        for piece in pieces(run.first, run.first + run.blocks, each):
            yield replace(item, todo=(piece,))


def _cost(item: Work) -> int:
    """Of what is to do: passes that look at the whole tensor are not saved by what is done."""
    blocks = sum(piece.blocks for piece in item.todo)
    return cost(item.step) * blocks // max(1, item.step.grid.blocks)
