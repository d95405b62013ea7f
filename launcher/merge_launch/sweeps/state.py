"""What has become of the members of a sweep: by their outputs first, then by what was submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merge_worker.output.files import MANIFEST, RECIPE

from ..backends.base import JobState, Status
from ..errors import in_one_line
from ..job.source import safe_name
from ..tracking import records
from ..tracking import status as job_status
from ..tracking.records import Record
from .definition import Member, Sweep


@dataclass(frozen=True)
class Found:
    """`state` None: nothing of the member was submitted from here, or is there."""

    state: JobState | None
    detail: str = ""
    merge: Record | None = None
    then: Record | None = None
    after: Status | None = None
    """Of what waits for the merge."""

    @property
    def word(self) -> str:
        if self.state is None:
            return "-"
        if self.state is JobState.DONE and self.after is not None:
            word = self.after.state.value
            return "done" if self.after.state is JobState.DONE else f"done, then {word}"
        return self.state.value

    @property
    def on_its_way(self) -> bool:
        return self.state in (JobState.QUEUED, JobState.RUNNING)


def job_folder(member: Member) -> Path:
    out = Path(member.merge.out)
    return out.with_name(f"{safe_name(out.name)}.job")


def merged(member: Member) -> bool:
    """Whether the output is there and of this very recipe."""
    return (Path(member.merge.out) / MANIFEST).is_file() and not other_merge(member)


def other_merge(member: Member) -> bool:
    """Whether another recipe's result is where the member's is to go."""
    out = Path(member.merge.out)
    try:
        return (out / MANIFEST).is_file() and (out / RECIPE).read_bytes() != member.merge.text
    except OSError:
        return True


def look(sweep: Sweep) -> tuple[dict[str, Found], list[str]]:
    """By member, and a line for each scheduler that could not be asked; one question for each."""
    pairs = {member.name: pair for member, pair in zip(sweep.members, _pairs(sweep), strict=True)}
    wanted = [each for pair in pairs.values() for each in pair if each is not None]
    said, failures = job_status.statuses(wanted)
    found = {m.name: _found(m, *pairs[m.name], said) for m in sweep.members}
    return found, [in_one_line(failure) for failure in failures]


def _pairs(sweep: Sweep) -> list[tuple[Record | None, Record | None]]:
    """The newest merge of each member, and what waits for that."""
    held: dict[str, list[Record]] = {}
    for record in records.load()[0]:
        for out in (record.out, *record.also):
            held.setdefault(out, []).append(record)
    pairs = []
    for member in sweep.members:
        own = held.get(member.merge.out) or records.beside(job_folder(member))
        merge = next((each for each in own if not each.after), None)
        pairs.append((merge, merge and _waiting(merge, own)))
    return pairs


def _waiting(merge: Record, own: Sequence[Record]) -> Record | None:
    return next((e for e in own if (e.backend, e.after) == (merge.backend, merge.job_id)), None)


def _found(
    member: Member,
    merge: Record | None,
    then: Record | None,
    said: Mapping[job_status.Key, Status],
) -> Found:
    after = said[job_status.key(then)] if then is not None else None
    status = said[job_status.key(merge)] if merge is not None else None
    on_its_way = status is not None and not status.state.over
    if merged(member) and not (on_its_way and status and status.state is JobState.RUNNING):
        # What followed within the job was not done, though the merge was.
        broken = status if status is not None and status.state is JobState.FAILED else None
        return Found(JobState.DONE, "", merge, then, after or broken)
    if status is None:
        return Found(None, "", merge, then, after)
    return Found(status.state, status.detail, merge, then, after)
