"""Merges from plan to manifest: intermediate results, locks, one pass over the inputs, commit."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from ..errors import OutputError, Stopped, UsageError
from ..messages import counted, print_line, printable
from ..output.checksums import Hashes
from ..output.commit import commit, finish
from ..output.files import output_errors
from ..output.lock import Busy, Lock, is_held, refuse_others
from ..output.manifest import read_manifest
from ..output.model_card import public_text
from ..output.store import PartialOutput, discard_others, remove_partial
from ..output.target import State, Target, inspect_output
from ..planning.plan import Plan
from ..system.machine import return_freed_memory
from ..system.progress import Progress
from ..system.ranks import Rank
from ..system.signals import StopFlag
from ..tokenizer.roundtrip import check_roundtrip
from ..units import elapsed, size
from .one_pass import stream
from .options import Clock, RunOptions
from .work import share

WAIT_S = 0.5
"""Seconds between looks at whether the other ranks have finished a stage."""

LOCK = re.compile(r"lock-(\d+)-of-(\d+)")
"""Matches the name of the lock that a rank holds while it works."""

ALREADY_THERE = "this merge is already there; nothing to do"
OTHERS_FINISH = "another rank finishes"


class MergeState(Enum):
    """Progress of a merge, as one of several ranks sees it."""

    TO_DO = "to do"
    DONE = "done"
    LEFT_TO_OTHERS = "left to others"  # another rank gives the files their final names


@dataclass
class RunningMerge:
    """One merge in this process. `summary` is the line to print once it is not TO_DO."""

    store: PartialOutput
    target: Target
    options: RunOptions
    rank: Rank
    state: MergeState = MergeState.TO_DO
    summary: str = ""

    @property
    def plan(self) -> Plan:
        return self.store.plan

    @property
    def to_do(self) -> bool:
        return self.state is MergeState.TO_DO

    def end(self, state: MergeState, summary: str) -> None:
        self.state, self.summary = state, summary

    def leave_to_others(self, reason: str) -> None:
        share = f"share {self.rank.number + 1} of {self.rank.world} is done"
        self.end(MergeState.LEFT_TO_OTHERS, f"{self.store.out}: {share}; {reason}")


def run_merges(
    plans: Sequence[tuple[Plan, Path]], options: RunOptions, rank: Rank, clock: Clock
) -> list[str]:
    """Merge each plan into its folder, all in one pass over the inputs.

    Returns a summary of each. Raises any WorkerError; work finished by then is kept.
    """
    clock.planned = time.monotonic()
    merges = [_inspect(plan, out, options, rank) for plan, out in plans]
    for merge in merges:
        _prepare(merge, clock)
    with contextlib.ExitStack() as locks:
        _claim(merges, locks)
        for merge in merges:
            locks.callback(merge.store.close)
        differing = _stream(merges, options, rank, clock)
        _finish(merges, differing, clock)
    for merge in merges:
        _remove_stages(merge)
        if merge.plan.texts and _key_in(merge.store.out) == merge.plan.key:
            from ..importance.merge import remove

            remove(merge.plan)
    return [merge.summary for merge in merges]


def _inspect(plan: Plan, out: Path, options: RunOptions, rank: Rank) -> RunningMerge:
    """Look at the output folder. Raises OutputError if the merge must not write there."""
    target = inspect_output(plan, out, overwrite=options.overwrite, resume=options.resume)
    for line in target.warnings:
        options.warn(line)
    merge = RunningMerge(PartialOutput(out, plan), target, options, rank)
    if target.state is State.FINISHED:
        merge.end(MergeState.DONE, f"{out}: {ALREADY_THERE}")
    return merge


def _prepare(merge: RunningMerge, clock: Clock) -> None:
    """Merge intermediate results, and check a changed tokenizer before weights are read."""
    if not merge.to_do:
        merge.store.remove_leftovers()
    elif merge.target.state is not State.COMMIT:
        _run_stages(merge, clock)
        if merge.plan.texts:
            _run_models(merge)
        _prepare_gates(merge)
        tokenizer = merge.plan.tokenizer
        warning = check_roundtrip(tokenizer) if merge.rank.number == 0 else None
        if warning:
            merge.options.warn(warning)


def _run_models(merge: RunningMerge) -> None:
    """Run the models on their texts, and let the merge read what was solved from that."""
    options, plan = merge.options, merge.plan
    if merge.rank.world > 1:
        raise UsageError(f"{plan.recipe.where}: 'data' is read by one process; leave out --ranks")
    from ..importance.merge import solve
    from .device import select_devices

    if options.caller is None:
        return_freed_memory()
    device = select_devices(options.device)[0]
    mode = "off" if options.caller else options.progress

    def say(line: str) -> None:
        if options.caller is None:
            print_line(line, sys.stderr)

    merge.store = PartialOutput(merge.store.out, solve(plan, device, mode, say))


def _run_stages(merge: RunningMerge, clock: Clock) -> None:
    """Merge the intermediate results of a plan. Ranks wait for each other between stages."""
    for stage in merge.plan.stages:
        assert stage.folder is not None
        once = replace(merge.options, overwrite=False)
        part = replace(merge, store=PartialOutput(stage.folder, stage), options=once)
        run_merges([(stage, stage.folder)], once, merge.rank, Clock(clock.began))
        while _key_in(stage.folder) != stage.key:
            if _await_others(part, clock):  # the rank that was to finish it may have died
                run_merges([(stage, stage.folder)], once, merge.rank, Clock(clock.began))
            time.sleep(WAIT_S)


def _prepare_gates(merge: RunningMerge) -> None:
    """Have the gates of mixtures computed, which the result or a lazy document copies."""
    for plan in (merge.plan, *merge.plan.lazy):
        if plan.mixture is not None and merge.options.gates is not None:
            merge.options.gates(plan, merge.options)


def _claim(merges: Sequence[RunningMerge], locks: contextlib.ExitStack) -> None:
    """Take the output folders for this rank until `locks` are released."""
    for merge in merges:
        if merge.to_do:
            _unless_others_finish(merge, lambda merge: _open_output(merge, locks))


def _stream(
    merges: Sequence[RunningMerge], options: RunOptions, rank: Rank, clock: Clock
) -> list[str]:
    """Do this rank's share of all merges. Return the names of tensors whose copies differ."""
    merges = [merge for merge in merges if merge.to_do]
    if not merges:
        return []
    try:
        return stream([merge.store for merge in merges], options, rank, clock)
    except OutputError:
        if rank.world == 1 or not all(map(_others_finish, merges)):
            raise
        for merge in merges:
            merge.leave_to_others(OTHERS_FINISH)
        return []


def _finish(merges: Sequence[RunningMerge], differing: list[str], clock: Clock) -> None:
    for merge in merges:
        if merge.to_do:
            _unless_others_finish(
                merge, lambda merge: _finish_output(merge, differing, clock), tries=2
            )


def _unless_others_finish(
    merge: RunningMerge, act: Callable[[RunningMerge], None], tries: int = 1
) -> None:
    """Call `act`; an OutputError is expected if another process finishes, which takes the folder.

    This may also be the same command, started twice.
    """
    try:
        with output_errors(merge.store.out):
            act(merge)
    except OutputError as error:
        if merge.rank.world > 1 and _others_finish(merge):
            merge.leave_to_others(OTHERS_FINISH)
        elif tries > 1 and isinstance(error, Busy):
            _unless_others_finish(merge, act, tries - 1)  # the holder of the lock has died
        elif _is_there(merge) and not merge.store.folder.exists():  # else the error is our own
            merge.end(MergeState.DONE, f"{merge.store.out}: {ALREADY_THERE}")
        else:
            raise


def _open_output(merge: RunningMerge, locks: contextlib.ExitStack) -> None:
    """Lock the output folder and open or resume the partial output; or finish an earlier commit."""
    store, rank = merge.store, merge.rank
    if merge.target.state is State.COMMIT:
        with _lock(store, "finish") as lock:
            commit(store.out, merge.target.replaces, lock.check)
        merge.end(MergeState.DONE, f"{store.out}: finished what an earlier run had merged")
        return
    with output_errors(store.out):
        # Ranks start one after the other, and none may discard work that another has begun.
        discard_others(store.out, store.key, resume=merge.options.resume or rank.world > 1)
        store.folder.mkdir(parents=True, exist_ok=True)
    store.locks = [locks.enter_context(_lock(store, f"{rank.number}-of-{rank.world}"))]
    refuse_others(store.folder, str(store.key))
    store.open_or_resume()
    if not merge.options.overwrite and _key_in(store.out) == store.plan.key:
        # Other ranks finished since OUT was inspected. Looked at only after the folder was made:
        # if they take that away, OUT is complete already.
        remove_partial(store.out, store.check)
        merge.end(MergeState.DONE, f"{store.out}: {ALREADY_THERE}")
        return
    whole = all(step.blocks is None for step in store.plan.steps)  # files are written in order
    if merge.options.sha256 and rank.world == 1 and whole:
        headers = [shard.header for shard in store.plan.layout.shards]
        store.hashes = Hashes(headers, store.plan.memory.bound // 4)


def _finish_output(merge: RunningMerge, differing: list[str], clock: Clock) -> None:
    """Give all files their final names, if this is the last of all ranks."""
    store = merge.store
    if not _await_others(merge, clock):
        return
    from ..importance.merge import notes_of
    from .sampling import check_result, saved_notes  # with torch, which is loaded by now

    with _lock(store, "finish") as lock:
        store.locks.append(lock)
        store.check()
        store.check_shards()
        with merge.options.stop_on_signal(StopFlag()):
            progress = Progress(merge.options.progress, 0, "", caller=merge.options.caller)
            identical = check_result(store, progress)
        run = {
            "notes": [
                *saved_notes(store.folder),
                *_notes_of_stages(store.plan),
                *notes_of(store.plan),
            ],
            "identical_to": [public_text(store.plan, label) for label in identical],
            "nonfinite": store.nonfinite(),
            "differing_copies": differing,
            "timings": clock.timings(),
            "gib_per_s": round(clock.gib_per_s, 3),
        }
        finish(store, merge.target, run, merge.options.sha256)
    if differing:
        merge.options.warn(
            f"{counted(len(differing), 'copied tensors differ')} between the models, "
            f"the first model's were taken: {printable(differing[0])}"
        )
    merge.end(MergeState.DONE, _summary(merge.plan, store.out, clock))


def _await_others(merge: RunningMerge, clock: Clock) -> bool:
    """Return whether all shares are done; else leave the rest to ranks that are at work.

    Raises Stopped if no process begins to work on the open shares in time.
    """
    store, began = merge.store, time.monotonic()
    while True:
        store.read_journals()
        if store.complete():
            return True
        if _others_finish(merge):
            merge.leave_to_others(OTHERS_FINISH)
            return False
        store.check()
        if _others_work(store):
            merge.leave_to_others("others still work")
            return False
        now, deadline_s = time.monotonic(), merge.options.deadline_s
        late = deadline_s is not None and now - clock.began > deadline_s
        if late or now - began > merge.options.patience_s:
            raise Stopped(
                f"{store.out}: share {merge.rank.number + 1} of {merge.rank.world} is done, and "
                f"no process works on the others; start those ranks, or run this without --ranks"
            )
        time.sleep(WAIT_S)


def _others_work(store: PartialOutput) -> bool:
    """Return whether a living rank has an open share. One that only waits, like this, has none."""
    done, steps = store.done(), store.plan.steps
    locks = [(path, LOCK.fullmatch(path.name)) for path in store.folder.glob("lock-*")]
    ranks = [(path, Rank(int(match[1]), int(match[2]))) for path, match in locks if match]
    return any(share(steps, rank, done) and is_held(path) for path, rank in ranks)


def _remove_stages(merge: RunningMerge) -> None:
    """Remove intermediate results of a finished merge, and of earlier versions of its recipe."""
    folder = merge.plan.options.stages_folder
    used = merge.plan.stages or any(p.mixture for p in (merge.plan, *merge.plan.lazy))
    if used and _key_in(merge.store.out) == merge.plan.key and folder.is_dir():
        for stage in folder.iterdir():
            if re.fullmatch(r"\d+-[0-9a-f]{16}", stage.name):
                shutil.rmtree(stage, ignore_errors=True)
            elif re.fullmatch(r"\.?(lock-)?gates-[0-9a-f]{16}\b.*|claim-[0-9a-f]+", stage.name):
                with contextlib.suppress(OSError):
                    stage.unlink()
        with contextlib.suppress(OSError):  # other files are in it
            folder.rmdir()


def _notes_of_stages(plan: Plan) -> list[str]:
    """Return the notes in the manifests of intermediate results, which are removed with them."""
    folders = [stage.folder for stage in plan.stages if stage.folder]
    return [str(note) for f in folders for note in (read_manifest(f) or {}).get("notes", ())]


def _lock(store: PartialOutput, name: str) -> Lock:
    return Lock(store.folder / f"lock-{name}", str(store.key))


def _others_finish(merge: RunningMerge) -> bool:
    """Return whether another rank gives the files their final names now, or has done so."""
    store = merge.store
    if is_held(store.folder / "lock-finish"):
        return True
    return _is_there(merge)


def _is_there(merge: RunningMerge) -> bool:
    """Return whether this very merge is finished in OUT, by whichever process."""
    # A process that starts after the end makes the folder for a moment; with --overwrite a folder
    # beside a manifest of this key is a merge that replaces it.
    store = merge.store
    replacing = merge.options.overwrite and store.folder.exists()
    return _key_in(store.out) == store.plan.key and not replacing


def _key_in(out: Path) -> object:
    return (read_manifest(out) or {}).get("key")


def _summary(plan: Plan, out: Path, clock: Clock) -> str:
    merged = sum(step.task is not None for step in plan.steps)
    return (
        f"{out}: {counted(merged, 'tensors')} merged, {len(plan.steps) - merged} copied; "
        f"{size(clock.bytes_in)} read, {size(clock.bytes_out)} written "
        f"in {elapsed(clock.timings()['total_s'])}"
    )
