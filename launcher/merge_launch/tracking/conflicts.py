"""A second job for one OUT. It is allowed, since a lock keeps the two apart; it is told, since it
is seldom meant.

Of the jobs that the records hold for OUT, only those that were not seen to end are asked about,
once the new one is on its way: nobody waits for the answer, and not having one is no fault.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..backends.base import JobState
from . import records, status
from .records import Record

PATIENCE_S = 5.0


def warning(fresh: Sequence[Record]) -> str | None:
    """On jobs that run or will run beside the first of these."""
    try:
        held, _ = records.load()
    except OSError:
        return None
    ids = {record.job_id for record in fresh}
    open_ones = [
        each
        for each in held
        if _same_out(each, fresh[0]) and each.job_id not in ids and not _ended(each)
    ]
    found, failures = status.query(open_ones, timeout_s=PATIENCE_S)
    busy = [
        each
        for each in open_ones
        if found[status.key(each)].state in (JobState.QUEUED, JobState.RUNNING)
    ]
    if not busy:
        return None
    job = busy[0].job_id
    more = f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
    seen = "was last seen" if failures else "is"
    state = found[status.key(busy[0])].state.value
    words = [shlex.join(["merge-launch", verb, job]) for verb in ("status", "cancel")]
    return (
        f"{job}{more} {seen} {state} for the same OUT, and only one of them can make it: "
        f"{', '.join(words)}"
    )


def _same_out(other: Record, ours: Record) -> bool:
    """What waits for a merge counts with it."""
    return (
        other.backend == ours.backend and not other.after and ours.out in (other.out, *other.also)
    )


def _ended(record: Record) -> bool:
    """Without a question: by what was heard last, or the code that the job left. One that was
    stopped may have been started again."""
    left = status.status_from_exit_code(record)
    return status.is_settled(record) or (left is not None and left.state is not JobState.STOPPED)
