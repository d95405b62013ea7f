"""States of a sweep's members: by their outputs first, then by the jobs that were submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merge_worker.output.files import MANIFEST, RECIPE

from ..backends.base import JobState, Status
from ..errors import in_one_line
from ..job.source import job_folder
from ..tracking import records
from ..tracking import status as job_status
from ..tracking.records import Record
from .definition import Member, Sweep


@dataclass(frozen=True)
class MemberState:
    """State of a member, and its jobs. `state` is None without an output or a job from here.

    `then` is the job that waits for `merge`, and `then_status` its status. A job `may_be_active` if
    its scheduler did not say that it does not know it.
    """

    state: JobState | None
    merge: Record | None = None
    then: Record | None = None
    then_status: Status | None = None
    may_be_active: bool = False

    @property
    def text(self) -> str:
        if self.state is None:
            return "-"
        if self.state is JobState.DONE and self.then_status is not None:
            then = self.then_status.state
            return "done" if then is JobState.DONE else f"done, then {then.value}"
        return self.state.value

    @property
    def is_active(self) -> bool:
        return self.state in (JobState.QUEUED, JobState.RUNNING)


def is_merged(member: Member) -> bool:
    """Whether the output exists and was made from the member's recipe, byte for byte."""
    return (Path(member.merge.out) / MANIFEST).is_file() and not has_other_merge(member)


def has_other_merge(member: Member) -> bool:
    """Whether the member's output folder holds the result of another recipe."""
    out = Path(member.merge.out)
    try:
        return (out / MANIFEST).is_file() and (out / RECIPE).read_bytes() != member.merge.text
    except OSError:
        return True


def member_states(sweep: Sweep) -> tuple[dict[str, MemberState], list[str]]:
    """Return states by member's name, and a line for each scheduler that did not answer.

    Each scheduler is asked once, about all members.
    """
    jobs = _jobs(sweep)
    wanted = [record for pair in jobs.values() for record in pair if record is not None]
    statuses, failures = job_status.query(wanted)
    states = {m.name: _state(m, *jobs[m.name], statuses) for m in sweep.members}
    return states, [in_one_line(failure) for failure in failures]


def _jobs(sweep: Sweep) -> dict[str, tuple[Record | None, Record | None]]:
    """Return the newest merge job of each member, by its name, and the job that waits for it."""
    by_out: dict[str, list[Record]] = {}
    for record in records.load()[0]:
        for out in (record.out, *record.also):
            by_out.setdefault(out, []).append(record)
    jobs = {}
    for member in sweep.members:
        own = by_out.get(member.merge.out) or records.copies_in(job_folder(member.merge.out))
        merge = next((record for record in own if not record.after), None)
        later = (job for job in own if merge is not None and records.waits_for(job, merge))
        then = next(later, None)
        jobs[member.name] = merge, then
    return jobs


def _state(
    member: Member,
    merge: Record | None,
    then: Record | None,
    statuses: Mapping[str, Status],
) -> MemberState:
    status = statuses[merge.key] if merge is not None else None
    then_status = statuses[then.key] if then is not None else None
    running = status is not None and status.state is JobState.RUNNING
    if is_merged(member) and not running:
        # A failed job with a finished merge: `--then`, at the end of the same job, failed.
        failed = status if status is not None and status.state is JobState.FAILED else None
        return MemberState(JobState.DONE, merge, then, then_status or failed)
    if status is None:
        return MemberState(None, merge, then, then_status)
    gone = (job_status.FORGOTTEN, job_status.SUPERSEDED)
    may_be_active = status.state is JobState.UNKNOWN and status not in gone
    return MemberState(status.state, merge, then, then_status, may_be_active)
