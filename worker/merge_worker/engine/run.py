"""Merges from plan to manifest: what `merge` and `average` do after their arguments are read."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import OutputError, Stopped
from ..messages import counted, printable
from ..output.checksums import Hashes
from ..output.commit import commit, finish
from ..output.files import output_errors
from ..output.lock import Busy, Lock, is_held, refuse_others
from ..output.manifest import read_manifest
from ..output.model_card import public_text
from ..output.store import PartialOutput, remove_partial
from ..output.target import State, Target, inspect_output
from ..planning.plan import Plan
from ..system.progress import Progress
from ..system.ranks import Rank
from ..system.signals import StopFlag, stop_on_signal
from ..tokenizer.roundtrip import check_roundtrip
from ..units import GIB, duration, size
from .one_pass import stream
from .options import Clock, RunOptions

WAIT_S = 0.5
"""Between looks at whether the other ranks have finished a stage."""


@dataclass
class RunningMerge:
    """What one process does of one merge."""

    store: PartialOutput
    target: Target
    options: RunOptions
    rank: Rank
    told: str = ""  # how it ended, once it did

    @property
    def plan(self) -> Plan:
        return self.store.plan


def run_merges(
    plans: Sequence[tuple[Plan, Path]], options: RunOptions, rank: Rank, clock: Clock
) -> list[str]:
    """Merge each plan into its folder, all in one pass over the inputs.

    Returns what to print of each. WorkerError of any kind; what others have done stays.
    """
    clock.planned = time.monotonic()
    jobs = []
    for plan, out in plans:
        target = inspect_output(plan, out, overwrite=options.overwrite, resume=options.resume)
        for line in target.warnings:
            print(f"warning: {line}", file=sys.stderr)
        jobs.append(RunningMerge(PartialOutput(out, plan), target, options, rank))
    for job in jobs:
        if job.target.state is State.FINISHED:
            job.told = f"{job.store.out}: this merge is already there; nothing to do"
            job.store.remove_leftovers()
        elif job.plan.stages and job.target.state is not State.COMMIT:
            _stages(job.plan, options, rank, clock)
        begins = not job.told and job.target.state is not State.COMMIT and rank.number == 0
        if (
            begins
            and job.plan.tokenizer.before
            and (warning := check_roundtrip(job.plan.tokenizer))
        ):
            print(f"warning: {warning}", file=sys.stderr)
    with contextlib.ExitStack() as locks:
        for job in jobs:
            if not job.told:
                _unless_others_end(job, lambda job: _begin(job, locks))
        left = [job for job in jobs if not job.told]
        differing = _stream_all(left, options, rank, clock) if left else []
        for job in left:
            if not job.told:
                _unless_others_end(job, lambda job: _end(job, differing, clock), tries=2)
    for job in jobs:
        if job.plan.stages and _key_in(job.store.out) == job.plan.key:
            _remove_stages(job.plan)
    return [job.told for job in jobs]


def _unless_others_end(
    job: RunningMerge, act: Callable[[RunningMerge], None], tries: int = 1
) -> None:
    """Whoever is last of all ranks finishes, and the folder of the others goes away with it."""
    try:
        with output_errors(job.store.out):
            act(job)
    except OutputError as error:
        if job.rank.world == 1 or not _others_end(job):
            if tries > 1 and isinstance(error, Busy):  # who held the lock has died since
                return _unless_others_end(job, act, tries - 1)
            raise
        job.told = f"{_share_of(job)}; another rank finishes"


def _share_of(job: RunningMerge) -> str:
    return f"{job.store.out}: share {job.rank.number + 1} of {job.rank.world} is done"


def _begin(job: RunningMerge, locks: contextlib.ExitStack) -> None:
    """Take the output for this merge and rank; `told` if there is nothing left to do."""
    store, rank = job.store, job.rank
    if job.target.state is State.COMMIT:
        with _lock(store, "finish"):
            commit(store.out, job.target.replaces)
        job.told = f"{store.out}: finished what an earlier run had merged"
        return
    with output_errors(store.out):
        store.folder.mkdir(parents=True, exist_ok=True)
    locks.enter_context(_lock(store, f"{rank.number}-of-{rank.world}"))
    refuse_others(store.folder, store.plan.key)
    # Ranks begin one after the other, and none may discard what another has begun.
    store.open_or_resume(resume=job.options.resume or rank.world > 1)
    if not job.options.overwrite and _key_in(store.out) == store.plan.key:
        # Others came to the end since OUT was looked at. Not before the folder is made: they may
        # take it away, and then OUT is whole already.
        remove_partial(store.out)
        job.told = f"{store.out}: this merge is already there; nothing to do"
        return
    if job.options.sha256 and rank.world == 1:
        headers = [shard.header for shard in store.plan.layout.shards]
        store.hashes = Hashes(headers, store.plan.memory.bound // 4)


def _end(job: RunningMerge, differing: list[str], clock: Clock) -> None:
    """Give everything its final name, if this is the last of all ranks."""
    store = job.store
    store.read_journals()
    if not store.complete():
        job.told = f"{_share_of(job)}; others still work"
        return
    from .sampling import check_result, saved_notes  # with torch, which is loaded by now

    with _lock(store, "finish"):
        with stop_on_signal(StopFlag()):
            alike = check_result(store, Progress(job.options.progress, 0, ""))
        run = {
            "notes": [*saved_notes(store.folder), *_notes_of_stages(store.plan)],
            "identical_to": [public_text(store.plan, label) for label in alike],
            "nonfinite": store.nonfinite(),
            "differing_copies": differing,
            "timings": clock.timings(),
            "gib_per_s": round(clock.moved / GIB / max(1e-9, clock.stream_s), 3),
        }
        finish(store, job.target, run, job.options.sha256)
    job.told = _summary(job.plan, store.out, clock, differing)


def _remove_stages(plan: Plan) -> None:
    """Intermediate results, those of earlier versions of the recipe too."""
    place = plan.options.stages_folder
    if place.is_dir():
        for folder in place.iterdir():
            if re.fullmatch(r"\d+-[0-9a-f]{16}", folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else's files
            place.rmdir()


def _notes_of_stages(plan: Plan) -> list[str]:
    """What was told of intermediate results, whose own manifests go away with them."""
    folders = [stage.folder for stage in plan.stages if stage.folder]
    return [str(note) for f in folders for note in (read_manifest(f) or {}).get("notes", ())]


def _stages(plan: Plan, options: RunOptions, rank: Rank, clock: Clock) -> None:
    """Merge what the plan needs first. Ranks wait for each other between stages."""
    for stage in plan.stages:
        assert stage.folder is not None
        once = replace(options, overwrite=False)
        run_merges([(stage, stage.folder)], once, rank, Clock(clock.began))
        while _key_in(stage.folder) != stage.key:
            if options.deadline_s and time.monotonic() - clock.began > options.deadline_s:
                raise Stopped(
                    f"{stage.folder}: stopped at the deadline; run the same command again"
                )
            time.sleep(WAIT_S)


def _lock(store: PartialOutput, name: str) -> Lock:
    return Lock(store.folder / f"lock-{name}", store.plan.key)


def _others_end(job: RunningMerge) -> bool:
    """Whether another rank gives everything its final name now, or has done so."""
    store = job.store
    if is_held(store.folder / "lock-finish"):
        return True
    # Ranks that begin after the end make the folder for a moment; what is replaced has a manifest.
    there = job.options.overwrite and store.folder.exists()
    return _key_in(store.out) == store.plan.key and not there


def _key_in(out: Path) -> object:
    return (read_manifest(out) or {}).get("key")


def _stream_all(
    jobs: Sequence[RunningMerge], options: RunOptions, rank: Rank, clock: Clock
) -> list[str]:
    """Do this rank's part of all of them; returns the names of differing copies."""
    try:
        return stream([job.store for job in jobs], options, rank, clock)
    except OutputError:
        if rank.world == 1 or not all(map(_others_end, jobs)):
            raise
        for job in jobs:
            job.told = f"{_share_of(job)}; another rank finishes"
        return []


def _summary(plan: Plan, out: Path, clock: Clock, differing: list[str]) -> str:
    timings: dict[str, Any] = clock.timings()
    merged = sum(step.task is not None for step in plan.steps)
    rate = clock.moved / GIB / max(1e-9, clock.stream_s)
    text = (
        f"{out}: {counted(merged, 'tensors')} merged, {len(plan.steps) - merged} copied; "
        f"{size(plan.output_bytes)} in {duration(timings['total_s'])} ({rate:.2f} GiB/s)"
    )
    if differing:
        print(
            f"warning: {counted(len(differing), 'copied tensors differ')} between the models, "
            f"the first model's were taken: {printable(differing[0])}",
            file=sys.stderr,
        )
    return text
