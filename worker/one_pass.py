"""One pass over the inputs for all merges of a run, from what earlier runs left to the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .cut import Piece
from .errors import InputError, first_names, printable
from .fetch import Fetcher
from .files import Files
from .flush import Flusher
from .memory import Memory, budget
from .plan import usable_cpus
from .progress import Progress
from .ranks import Rank, share
from .readahead import ReadAhead, Work
from .stopping import Stop, by_clock, by_signal
from .store import Store
from .together import join


@dataclass(frozen=True)
class RunOptions:
    """How to run, as far as it cannot change the result."""

    device: str = "auto"
    overwrite: bool = False
    resume: bool = True
    sha256: bool = False
    progress: str = "auto"
    allow_nonfinite: bool = False
    deadline_s: float | None = None
    prune: bool = False  # what was fetched and read is removed


@dataclass
class Clock:
    """Seconds of the phases, for the manifest."""

    began: float
    planned: float = 0.0
    stream_s: float = 0.0
    moved: int = 0  # bytes read and written while streaming

    def timings(self) -> dict[str, float]:
        return {
            "plan_s": round(self.planned - self.began, 3),
            "stream_s": round(self.stream_s, 3),
            "total_s": round(time.monotonic() - self.began, 3),
        }


def stream(stores: Sequence[Store], options: RunOptions, rank: Rank, clock: Clock) -> list[str]:
    """Do this rank's share of what the stores wait for; returns the names of differing copies."""
    stop, files = Stop(), Files()
    progress = _progress(stores, options.progress, rank)
    try:
        with by_signal(stop), by_clock(stop, options.deadline_s, clock.began), progress:
            work = join(
                [share(s.plan.steps, rank, _done(s, options, progress, stop)) for s in stores]
            )
            if rank.world > 1:  # its own share is the whole of it
                progress.done_before, progress.total_out = 0, sum(map(_result_bytes, work))
            memory = _memory(stores, work)
            fetcher = Fetcher(files, work, progress, options.prune and rank.world == 1)
            with fetcher, ReadAhead(files, work) as ahead:
                # Torch takes seconds to load, in which the storage is at work already.
                from .device import devices
                from .evidence import of_inputs
                from .stream import Engine

                found = devices(options.device)
                loaded = time.monotonic()
                engine = Engine(stores, memory, progress, found, files, ahead, stop)
                engine.allow_nonfinite, engine.fetcher = options.allow_nonfinite, fetcher
                of_inputs(stores, files, rank, progress)
                progress.latest = Latest(stores)
                progress.begins()
                engine.forget = sum(s.plan.input_bytes for s in stores) > _memory_bytes() // 2
                with Flusher([file.fd for store in stores for file in store.files]):
                    engine.run(work)
                clock.stream_s = time.monotonic() - loaded
            _refuse_changed(stores)
            for store in stores:
                store.sync(engine.forget)
    finally:
        for store in stores:
            store.close()
        files.close()
    clock.moved = progress.bytes_in + progress.bytes_out
    return engine.differing


def _progress(stores: Sequence[Store], mode: str, rank: Rank) -> Progress:
    total = sum(step.grid.count * step.dtype.bytes for s in stores for step in s.plan.steps)
    title = printable(stores[0].out.resolve().name) + (", …" if len(stores) > 1 else "")
    progress = Progress(mode, total, title)
    progress.rank, progress.world = rank.number, rank.world
    return progress


def _result_bytes(work: Work) -> int:
    """What this process writes of a tensor."""
    spans = [work.step.grid.span(piece.first, piece.blocks) for piece in work.todo]
    return sum(stop - start for start, stop in spans) * work.step.result_bytes


class Latest:
    """The tensor that was written last, and how many values so far are not finite."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = stores
        self.seen = [0] * len(stores)
        self.nonfinite, self.name = 0, ""

    def __call__(self) -> tuple[str, int]:
        for number, store in enumerate(self.stores):
            fresh = list(store.entries.values())[self.seen[number] :]
            self.seen[number] += len(fresh)
            self.nonfinite += sum(entry.nonfinite for entry in fresh)
            if fresh:
                self.name = store.plan.steps[fresh[-1].step].name
        return self.name, self.nonfinite


def _refuse_changed(stores: Sequence[Store]) -> None:
    """InputError if a file is not what it was: the result is of two versions of it."""
    plans = [plan for store in stores for plan in (store.plan, *store.plan.lazy)]
    shards = {s.path: s for plan in plans for m in plan.models for s in m.shards}
    found = [f"{path}: {what}" for path, s in shards.items() if (what := s.changed())]
    if found:
        raise InputError(
            f"{first_names(found)}, while the merge read it; nothing is finished\n"
            f"  when nobody writes to it any more, the same command with --no-resume begins anew"
        )


def _memory_bytes() -> int:
    """Of this machine; as good as endless where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 60


def _memory(stores: Sequence[Store], work: Sequence[Work]) -> Memory:
    """The plan's own budget, or one for all that is held at once."""
    if len(stores) == 1:
        return stores[0].plan.memory
    options = stores[0].plan.options
    return budget([w.step for w in work], options.memory_bytes, options.threads or usable_cpus())


def _done(
    store: Store, options: RunOptions, progress: Progress, stop: Stop
) -> dict[int, list[Piece]]:
    """What earlier runs have left, checked; and the files open for what is left to do."""
    store.read_journals()
    store.open()
    if store.entries:
        lost = store.drop_damaged(store.plan.memory.lanes, stop)
        if not options.allow_nonfinite:
            store.forget_nonfinite()
        _say_resumed(store, progress, lost)
    return store.done()


def _say_resumed(store: Store, progress: Progress, lost: int) -> None:
    for entry in store.entries.values():
        step = store.plan.steps[entry.step]
        start, stop = step.grid.span(entry.piece.first, entry.piece.blocks)
        progress.done_before += (stop - start) * step.dtype.bytes
    damaged = f", {lost} damaged pieces are done again" if lost else ""
    line = f"{printable(str(store.out))}: continuing at {progress.percent:.0f} %{damaged}"
    if progress.mode == "json":
        progress.event("resumed", percent=progress.percent, damaged=lost)
    elif progress.mode != "off":
        progress.say(line)
