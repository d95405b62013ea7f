"""One merge from plan to manifest: what `merge` and `average` do after their arguments are read."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import OutputError, Stopped, printable
from .files import Files
from .finish import commit, finish
from .flush import Flusher
from .hashes import Hashes
from .lock import Lock, refuse_others
from .manifest import read_manifest
from .plan import Plan
from .progress import GIB, Progress, duration
from .ranks import Rank, share
from .readahead import ReadAhead
from .spoken import spoken
from .stopping import Stop, by_clock, by_signal
from .store import Store, output_errors
from .target import State, Target, survey
from .units import size

WAIT_S = 0.5
"""Between looks at whether the other ranks have finished a stage."""


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


@dataclass
class Clock:
    """Seconds of the phases, for the manifest."""

    began: float
    planned: float = 0.0
    stream_s: float = 0.0

    def timings(self) -> dict[str, float]:
        return {
            "plan_s": round(self.planned - self.began, 3),
            "stream_s": round(self.stream_s, 3),
            "total_s": round(time.monotonic() - self.began, 3),
        }


def run_merge(plan: Plan, out: Path, options: RunOptions, rank: Rank, clock: Clock) -> str:
    """Merge into `out`; returns the line to print at the end. WorkerError of any kind."""
    clock.planned = time.monotonic()
    target = survey(plan, out, overwrite=options.overwrite, resume=options.resume)
    if target.state is State.FINISHED:
        return f"{out}: this merge is already there; nothing to do"
    if plan.stages and target.state is not State.COMMIT:
        _stages(plan, options, rank, clock)
    if target.state is not State.COMMIT and rank.number == 0:
        warning = spoken(plan.text)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    text = _merge(plan, out, target, (options, rank, clock))
    if plan.stages and _key_in(out) == plan.key:
        _remove_stages(plan)
    return text


def _merge(plan: Plan, out: Path, target: Target, how: tuple[RunOptions, Rank, Clock]) -> str:
    options, rank, clock = how
    store = Store(out, plan)
    if options.sha256 and rank.world == 1:
        headers = [shard.header for shard in plan.layout.shards]
        store.hashes = Hashes(headers, plan.memory.bound // 4)
    share_of = f"{out}: share {rank.number + 1} of {rank.world} is done"
    try:
        if target.state is State.COMMIT:
            with _lock(store, "finish"):
                commit(store, target)
            return f"{out}: finished what an earlier run had merged"
        with output_errors(out):
            store.folder.mkdir(parents=True, exist_ok=True)
        with _lock(store, f"{rank.number}-of-{rank.world}"):
            if rank.world > 1 and not options.overwrite and _key_in(out) == plan.key:
                store.remove()  # a rank with nothing to do, which began after the others' end
                return f"{out}: this merge is already there; nothing to do"
            refuse_others(store.folder, plan.key)
            # Ranks begin one after the other, and none may discard what another has begun.
            store.prepare(resume=options.resume or rank.world > 1)
            differing, moved = _stream(store, options, rank, clock)
            store.read_journals()
            if not store.complete():
                return f"{share_of}; others still work"
            with _lock(store, "finish"):
                run = {
                    "nonfinite": store.nonfinite(),
                    "differing_copies": differing,
                    "timings": clock.timings(),
                    "gib_per_s": round(moved / GIB / max(1e-9, clock.stream_s), 3),
                }
                finish(store, target, run, options.sha256)
    except OutputError:
        # Whoever is last of all ranks finishes, and the folder of the others goes away with it.
        if rank.world > 1 and (_finishing(store) or _finished(store)):
            return f"{share_of}; another rank finishes"
        raise
    return _summary(plan, out, clock, moved, differing)


def _remove_stages(plan: Plan) -> None:
    """Intermediate results, those of earlier versions of the recipe too."""
    place = plan.options.stages
    if place.is_dir():
        for folder in place.iterdir():
            if re.fullmatch(r"\d+-[0-9a-f]{16}", folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else's files
            place.rmdir()


def _stages(plan: Plan, options: RunOptions, rank: Rank, clock: Clock) -> None:
    """Merge what the plan needs first. Ranks wait for each other between stages."""
    for stage in plan.stages:
        assert stage.folder is not None
        run_merge(stage, stage.folder, replace(options, overwrite=False), rank, Clock(clock.began))
        while _key_in(stage.folder) != stage.key:
            if options.deadline_s and time.monotonic() - clock.began > options.deadline_s:
                raise Stopped(
                    f"{stage.folder}: stopped at the deadline; run the same command again"
                )
            time.sleep(WAIT_S)


def _lock(store: Store, name: str) -> Lock:
    return Lock(store.folder / f"lock-{name}", store.plan.key)


def _finishing(store: Store) -> bool:
    """Whether another rank holds the lock of the end."""
    return (store.folder / "lock-finish").exists()


def _finished(store: Store) -> bool:
    """Whether another rank has given everything its final name."""
    return _key_in(store.out) == store.plan.key and not store.folder.exists()


def _key_in(out: Path) -> object:
    return (read_manifest(out) or {}).get("key")


def _stream(store: Store, options: RunOptions, rank: Rank, clock: Clock) -> tuple[list[str], int]:
    """Do this rank's share; returns the names of differing copies, and the bytes moved."""
    plan, stop, files = store.plan, Stop(), Files()
    total = sum(step.grid.count * step.dtype.bytes for step in plan.steps)
    progress = Progress(options.progress, total, printable(store.out.resolve().name))
    try:
        store.read_journals()
        store.open()
        with by_signal(stop), by_clock(stop, options.deadline_s, clock.began), progress:
            if store.entries:
                lost = store.drop_damaged(plan.memory.lanes)
                if not options.allow_nonfinite:
                    store.forget_nonfinite()
                _say_resumed(store, progress, lost)
            work = share(plan.steps, rank, store.done())
            with ReadAhead(files, work) as ahead:
                # Torch takes seconds to load, in which the storage is at work already.
                from .device import devices
                from .stream import Engine

                found = devices(options.device)
                loaded = time.monotonic()
                engine = Engine(plan, store, progress, found, files, ahead, stop)
                engine.allow_nonfinite = options.allow_nonfinite
                with Flusher([file.fd for file in store.files]):
                    engine.run(work)
                clock.stream_s = time.monotonic() - loaded
            store.sync()
    finally:
        store.close()
        files.close()
    return engine.differing, progress.bytes_in + progress.bytes_out


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
        print(line, file=progress.stream)


def _summary(plan: Plan, out: Path, clock: Clock, moved: int, differing: list[str]) -> str:
    timings: dict[str, Any] = clock.timings()
    merged = sum(step.task is not None for step in plan.steps)
    rate = moved / GIB / max(1e-9, clock.stream_s)
    text = (
        f"{out}: {merged} tensors merged, {len(plan.steps) - merged} copied; "
        f"{size(plan.output_bytes)} in {duration(timings['total_s'])} ({rate:.2f} GiB/s)"
    )
    if differing:
        print(
            f"warning: {len(differing)} copied tensors differ between the models, the first "
            f"model's were taken: {printable(differing[0])}",
            file=sys.stderr,
        )
    return text
