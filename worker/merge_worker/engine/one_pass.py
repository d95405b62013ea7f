"""One pass over the inputs for all merges of a run, resuming the work of earlier runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..checkpoint.header import Shard
from ..checkpoint.hub import Hub
from ..checkpoint.reader import OTHER_FILES, Files, allow_open_files
from ..errors import InputError, UsageError
from ..messages import counted, first_names, printable
from ..output.shard_file import early_writeback
from ..output.store import PartialOutput
from ..planning.plan import Plan
from ..planning.step import Piece
from ..system.progress import Progress
from ..system.ranks import Rank
from ..system.signals import StopFlag, stop_at_deadline
from .options import Clock, RunOptions
from .prefetch import Fetcher, ReadAhead
from .processes import Do, WorkerProcesses, can_fork, with_readahead
from .work import Work, join_steps, share


def stream(
    stores: Sequence[PartialOutput], options: RunOptions, rank: Rank, clock: Clock
) -> list[str]:
    """Do this rank's share of all merges. Return the names of tensors whose copies differ.

    The shards stay open.
    """
    run = _Pass(stores, options, rank, clock)
    try:
        with options.stop_on_signal(run.stop):
            with stop_at_deadline(run.stop, options.deadline_s, clock.began):
                run.find_work()
            differing = run.run()
            refuse_changed([store.plan for store in stores])
            for store in stores:
                store.sync(run.drop_cache)
    finally:
        run.files.close()
    clock.bytes_in, clock.bytes_out = run.progress.bytes_in, run.progress.bytes_out
    return differing


@dataclass
class _Pass:
    """One pass over the inputs: its work, its files and the objects that run it."""

    stores: Sequence[PartialOutput]
    options: RunOptions
    rank: Rank
    clock: Clock
    stop: StopFlag = field(default_factory=StopFlag)
    damaged: int = 0  # pieces of earlier runs that are done again

    def __post_init__(self) -> None:
        total = sum(
            step.grid.count * step.dtype.bytes for s in self.stores for step in s.plan.steps
        )
        more = ", …" if len(self.stores) > 1 else ""
        title = printable(self.stores[0].out.resolve().name) + more
        caller = self.options.caller
        self.progress = Progress(self.options.progress, total, title, caller=caller)
        self.progress.on_failure = self.stop.set
        self.progress.rank, self.progress.world = self.rank.number, self.rank.world
        hub = Hub()
        for store in self.stores:
            hub.adopt(store.plan.options.hub)
        self.keep_open = self._files_to_keep_open()
        self.files = Files(hub, self.keep_open)
        inputs = sum(shard.size for shard in _shards([s.plan for s in self.stores]).values())
        self.drop_cache = inputs > _memory_bytes() // 2

    def _files_to_keep_open(self) -> int:
        """Return how many inputs may stay open. Raises UsageError if the outputs are too many."""
        outputs, limit = sum(len(s.plan.layout.shards) for s in self.stores), allow_open_files()
        left = limit - OTHER_FILES - outputs
        if left < 0:
            raise UsageError(
                f"{self.stores[0].out}: {counted(outputs, 'files')} of weights are written at a "
                f"time, and the limit of open files is {limit}\n"
                f"  raise it (ulimit -n {outputs + 2 * OTHER_FILES}), or write fewer "
                f"(--shard-size)"
            )
        self.direct = left >= outputs  # which takes another descriptor of each
        return left - outputs * self.direct

    def find_work(self) -> None:
        """Find the work that earlier runs have not done."""
        shares = [share(s.plan.steps, self.rank, self._resume(s)) for s in self.stores]
        self.work = join_steps(shares)
        self.memory = self.stores[0].plan.memory
        if len(self.stores) > 1:  # the joint steps need more
            self.memory = self.stores[0].plan.options.budget([item.step for item in self.work])
        self.progress.names = [item.step.name for item in self.work]
        if self.rank.world > 1:  # progress counts this rank's share alone
            self.progress.done_before = 0
            self.progress.total_out = sum(map(_result_bytes, self.work))
        self.progress.begin()
        if any(store.entries for store in self.stores):
            percent = round(self.progress.percent, 2)
            self.progress.event("resumed", percent=percent, damaged=self.damaged)

    def _resume(self, store: PartialOutput) -> dict[int, list[Piece]]:
        """Open the output files, and return the intact pieces of earlier runs by step."""
        store.read_journals()
        if store.outdated:
            done_again = f"{counted(store.outdated, 'pieces')} of earlier runs are done again"
            text = f"an input was replaced or written to since; {done_again}"
            self.progress.warn(f"{store.out}: {text}")
        store.open(direct=self.direct)
        if store.entries:
            damaged = store.drop_damaged(store.plan.memory.lanes, self.stop)
            if not self.options.allow_nonfinite:
                store.discard_nonfinite()
            self._report_resumed(store, damaged)
        return store.done()

    def _report_resumed(self, store: PartialOutput, damaged: int) -> None:
        progress = self.progress
        for entry in store.entries.values():
            step = store.plan.steps[entry.step]
            start, stop = step.grid.span(entry.piece.first, entry.piece.blocks)
            progress.done_before += (stop - start) * step.dtype.bytes
        self.damaged += damaged
        if progress.mode not in ("json", "off"):
            again = f", {counted(damaged, 'damaged pieces are')} done again" if damaged else ""
            out = printable(str(store.out))
            progress.print_line(f"{out}: continuing at {progress.percent:.0f} %{again}")

    def run(self) -> list[str]:
        """Do the work. Return the names of tensors whose copies differ."""
        prune = self.options.prune and self.rank.world == 1
        fetcher = Fetcher(self.files, self.work, self.progress, prune)
        ahead = ReadAhead(self.files, self.work)
        clocked = stop_at_deadline(self.stop, self.options.deadline_s, self.clock.began)
        with clocked, fetcher, ahead:
            # Torch takes seconds to load, while the storage reads ahead already.
            from .device import missing_gpus
            from .measure import measure_importance
            from .sampling import check_inputs

            began = time.monotonic()
            plans = [store.plan for store in self.stores]
            threads = self.stores[0].plan.options.thread_count
            measured = measure_importance(plans, self.files, threads, self.stop)
            processes = None if fetcher.busy else self._start_processes()
            with self.progress, early_writeback([f.fd for s in self.stores for f in s.files]):
                notes = missing_gpus(self.options.device, self.options.expect_gpus) + measured
                check_inputs(self.stores, self.files, self.rank, self.progress, notes)
                self.progress.restart_clock()
                if processes is not None:
                    differing = processes.wait(self.stop)
                else:
                    differing = self._engine(ahead, fetcher, self.stop)(self.work)
            self.clock.stream_s = time.monotonic() - began
        return differing

    def _start_processes(self) -> WorkerProcesses | None:
        """Start processes that share the work, if there are processors for them."""
        count = self.memory.processes
        hashing = any(store.hashes for store in self.stores)
        caller = self.options.caller
        if count < 2 or hashing or (caller and not caller.may_fork) or not can_fork():
            return None
        self.memory = self.memory.per_process

        def start(number: int, stop: StopFlag) -> Do:
            # The parent's locks may have been held at the fork.
            hub = Hub()
            hub.adopt(self.files.hub)
            self.files = Files(hub, self.keep_open)
            do = self._engine(None, None, stop, (number, count))
            return lambda work: do(with_readahead(work, self.files))

        return WorkerProcesses(self.work, count, self.progress, start)

    def _engine(
        self,
        ahead: ReadAhead | None,
        fetcher: Fetcher | None,
        stop: StopFlag,
        process: tuple[int, int] = (0, 1),
    ) -> Do:
        """Return a function that does work and returns the names of tensors whose copies differ."""
        from .device import devices_of_rank
        from .stream import Engine

        devices = devices_of_rank(self.options.device, *process)
        engine = Engine(self.stores, self.memory, self.progress, devices, self.files, ahead, stop)
        engine.allow_nonfinite, engine.fetcher = self.options.allow_nonfinite, fetcher
        engine.drop_cache = self.drop_cache
        return engine.run


def _result_bytes(work: Work) -> int:
    """Return the bytes of a tensor that this process writes."""
    spans = [work.step.grid.span(piece.first, piece.blocks) for piece in work.todo]
    return sum(stop - start for start, stop in spans) * work.step.result_bytes


def refuse_changed(plans: Sequence[Plan]) -> None:
    """Raise InputError if an input changed during the merge, which read two versions of it."""
    shards = _shards(plans).items()
    changes = [f"{path}: {change}" for path, shard in shards if (change := shard.changed())]
    if changes:
        raise InputError(
            f"{first_names(changes)}, while the merge read it; nothing is finished\n"
            f"  when no program writes to it any more, start over with --no-resume"
        )


def _shards(plans: Sequence[Plan]) -> dict[str, Shard]:
    """Return every input file once, by its path."""
    every = [inner for plan in plans for inner in (plan, *plan.lazy)]
    return {s.path: s for plan in every for m in plan.read_from for s in m.shards}


def _memory_bytes() -> int:
    """Return the memory of this machine in bytes, or 2^60 if the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 60
