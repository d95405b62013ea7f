"""Worker processes for methods that are bound by the processor.

Threads of one process queue for the interpreter's lock: methods of many short steps took as long
with sixteen of them as with two. So a run with several processors forks when torch is loaded. Its
processes take batches of tensors from a pipe, write to the files that the parent has opened, and
report how they ended; the parent shows the progress and finishes.
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
from ..system.signals import GRACE_S, RESUMABLE, StopFlag, stop_on_signal
from .work import Work, cost

BATCHES_EACH = 64
"""Batches for each process, so that all end at about the same time."""

POLL_S = 0.2
"""Seconds between looks at whether the parent was asked to stop."""

SETTLE_S = 0.02
"""Longest wait for threads that have ended."""

MOST_HINTED = 64 << 20
"""Most bytes of a source to read ahead: there are several sources, tensors and processes."""

Do = Callable[[Iterable[Work]], list[str]]
"""Does the work and returns the names of tensors whose copies differ."""

Start = Callable[[int, StopFlag], Do]
"""Prepares the process of that number, from 0."""


def can_fork(tasks: Path = Path("/proc/self/task")) -> bool:
    """Return whether a fork is safe: no library has threads that the new process would lack.

    `tasks` is the folder of the threads of this process, on Linux.
    """
    try:
        return _has_only_ours(tasks) or _without_idle_threads(tasks)
    except OSError:
        return False


def _has_only_ours(tasks: Path) -> bool:
    return len(list(tasks.iterdir())) == threading.active_count()


def _without_idle_threads(tasks: Path) -> bool:
    """Let libraries stop the threads that they can start again; return whether those were all.

    OpenBLAS, which numpy loads with a thread for each processor, stops its threads at every fork.
    """
    process = _fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    # The kernel may list a thread for a moment after its end.
    deadline = time.monotonic() + SETTLE_S
    while not _has_only_ours(tasks) and time.monotonic() < deadline:
        time.sleep(SETTLE_S / 10)
    return _has_only_ours(tasks)


def with_readahead(work: Iterable[Work], files: Files) -> Iterator[Work]:
    """Yield the work, with read-ahead hints to the kernel when each item is taken."""
    for item in work:
        # Once for a tensor that several processes share: with its first part.
        for tensor in item.step.stored_inputs() if item.todo[0].first == 0 else ():
            files.will_need(tensor.file, tensor.offset, min(tensor.nbytes, MOST_HINTED))
        yield item


@dataclass
class WorkerProcesses:
    """Forked processes. Created before an accelerator's context, or any thread of a library."""

    work: Sequence[Work]
    count: int
    progress: Progress
    start: Start
    _answers: dict[int, int] = field(default_factory=dict)  # process id by its pipe
    _alive: int = -1

    def __post_init__(self) -> None:
        self.batches = batches(self.work, self.count * BATCHES_EACH)
        self.progress.count_processes(self.count)
        queue, put = os.pipe()
        watch, self._alive = os.pipe()
        # All fit into the pipe, which holds 64 KiB.
        os.write(put, b"".join(n.to_bytes(2, "little") for n in range(len(self.batches))))
        os.close(put)
        sys.stdout.flush()
        sys.stderr.flush()
        for number in range(self.count):
            answer, report_to = os.pipe()
            process = _fork()
            if process == 0:
                os.close(self._alive)
                self._run_process(number, queue, watch, report_to)
            os.close(report_to)
            self._answers[answer] = process
        self.progress.processes = list(self._answers.values())
        os.close(queue)
        os.close(watch)

    def _run_process(self, number: int, queue: int, watch: int, answer: int) -> None:
        """Do the work of a new process and report to the parent; does not return."""
        report: dict[str, Any] = {}
        try:
            self.progress.as_process(number + 1)
            stop = StopFlag()
            with stop_on_signal(stop):
                threading.Thread(target=_orphaned, args=(watch, stop), daemon=True).start()
                report["differing"] = self.start(number, stop)(self._take_batches(queue))
        except WorkerError as error:
            report |= {"kind": type(error).__name__, "text": str(error)}
        except BaseException:
            traceback.print_exc()
            report["kind"] = ""
        finally:
            os.write(answer, json.dumps(report).encode())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _take_batches(self, pipe: int) -> Iterator[Work]:
        """Yield the work of one batch after the other, until the pipe is empty."""
        while word := os.read(pipe, 2):
            yield from self.batches[int.from_bytes(word, "little")]

    def wait(self, stop: StopFlag) -> list[str]:
        """Wait for all processes. Return the names of tensors whose copies differ.

        Raises the first error of any process, or Stopped.
        """
        reports: list[dict[str, Any]] = []
        asked = False
        interrupt: BaseException | None = None
        while self._answers:
            try:
                ready, _, _ = select.select(list(self._answers), [], [], POLL_S)
            except KeyboardInterrupt as error:  # of a program that merges in its process
                interrupt = error
                stop.set("interrupted")
                continue
            reports += [self._report(answer) for answer in ready]
            if not asked and (stop.is_set() or any("kind" in report for report in reports)):
                asked = True
                for process in self._answers.values():
                    os.kill(process, signal.SIGTERM)
        os.close(self._alive)
        if interrupt is not None:
            raise interrupt
        if stop.is_set():
            raise stop.error(self.progress.percent)
        failed = [report for report in reports if "kind" in report]
        # A process that was stopped because of another's error is not the reason.
        for report in sorted(failed, key=lambda report: report["kind"] == Stopped.__name__):
            if report["kind"]:
                raise getattr(errors, report["kind"])(report["text"])
            raise RuntimeError("a worker process failed; its traceback is above")
        return list(dict.fromkeys(name for report in reports for name in report["differing"]))

    def _report(self, answer: int) -> dict[str, Any]:
        """Return the report of a process that has ended."""
        process = self._answers.pop(answer)
        with open(answer, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(process, 0)
        if text:
            return dict(json.loads(text))
        ended = os.waitstatus_to_exitcode(status)
        more = ", as the kernel does when memory is short" if ended == -signal.SIGKILL else ""
        fault = f"a worker process was ended by signal {-ended}{more}; {RESUMABLE}"
        return {"kind": Stopped.__name__, "text": fault}


def _fork() -> int:
    with warnings.catch_warnings():
        # Newer Pythons warn of threads; their locks are not used after the fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _orphaned(watch: int, stop: StopFlag) -> None:
    """End this process with its parent: the pipe, which is never written to, closes with it."""
    os.read(watch, 1)
    stop.set("stopped because its parent process has ended")
    time.sleep(GRACE_S)
    os._exit(Stopped.exit_code)


def batches(work: Sequence[Work], most: int) -> list[list[Work]]:
    """Divide the work into batches of about the same cost; the expensive items come first."""
    share = max(1, sum(map(_cost, work)) // most)
    priced = [(_cost(part), part) for item in work for part in _parts(item, share)]
    priced.sort(key=lambda pair: -pair[0] if pair[0] > share else 0)
    result: list[list[Work]] = []
    filled = share
    for price, item in priced:
        if filled + price > share:
            result.append([])
            filled = 0
        result[-1].append(item)
        filled += price
    return result


def _parts(item: Work, share: int) -> Iterator[Work]:
    """Yield a tensor in parts, if these can be merged independently."""
    whole, blocks = _cost(item), sum(piece.blocks for piece in item.todo)
    if item.step.reads > 1 or whole <= share or not blocks:
        yield item
        return
    most = max(1, blocks * share // whole)
    for run in item.todo:
        for piece in pieces(run.first, run.first + run.blocks, most):
            yield replace(item, todo=(piece,))


def _cost(item: Work) -> int:
    """Estimate the remaining cost. Statistics passes read a whole tensor again, even if a part is
    already merged."""
    blocks = sum(piece.blocks for piece in item.todo)
    return cost(item.step) * blocks // max(1, item.step.grid.blocks)
