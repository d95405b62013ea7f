"""Warnings about a second job for the same OUT.

Such a job is allowed, since a lock keeps the two apart, but rarely intended. Only recorded jobs
that have not ended are queried, after the new job was submitted; a failed query is ignored.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ..backends.base import JobState
from . import records, status
from .records import Record

PATIENCE_S = 5.0


def warning(fresh: Sequence[Record]) -> str | None:
    """Return a warning if other jobs for the OUT of the first record are queued or running."""
    try:
        recorded, _ = records.load()
    except OSError:
        return None
    own = {record.key for record in fresh}
    rivals = [job for job in recorded if _same_out(job, fresh[0]) and job.key not in own]
    unfinished = [job for job in rivals if not _has_ended(job)]
    statuses, failures = status.query(unfinished, timeout_s=PATIENCE_S)
    active = (JobState.QUEUED, JobState.RUNNING)
    busy = [job for job in unfinished if statuses[job.key].state in active]
    if not busy:
        return None
    job = busy[0].job_id
    more = f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
    seen = "was last seen" if failures else "is"
    state = statuses[busy[0].key].state.value
    commands = [shlex.join(["merge-launch", verb, job]) for verb in ("status", "cancel")]
    return (
        f"{job}{more} {seen} {state} for the same OUT, and only one of them can write it: "
        f"{', '.join(commands)}"
    )


def _same_out(other: Record, new: Record) -> bool:
    # A job that follows a merge counts with it.
    return other.backend == new.backend and not other.after and new.out in (other.out, *other.also)


def _has_ended(record: Record) -> bool:
    """Return whether the status or exit code is final; a stopped job may have restarted."""
    by_code = status.status_from_exit_code(record)
    return status.is_settled(record) or (
        by_code is not None and by_code.state is not JobState.STOPPED
    )
