"""Records of submitted jobs: one small file for each in the user's state folder.

The scheduler and the exit code of the job take precedence over the recorded status. OUT.job/ holds
a copy of the record. Files are replaced atomically, so that several processes may write.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs

from merge_worker.messages import first_names, nearest, printable
from merge_worker.output.files import write_file

from ..backends.base import JobState, Status
from ..errors import UsageError


@dataclass(frozen=True)
class Record:
    """A job as it was submitted, and its last known status. Times are Unix seconds."""

    job_id: str
    backend: str
    dialect: str
    out: str
    log: str
    name: str = ""
    script: str = ""
    host: str = ""
    submitted_s: float = 0.0
    after: str = ""
    ticket: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    """The OUTs of further merges of the same job."""
    state: str = JobState.UNKNOWN.name
    detail: str = ""

    @property
    def exit_file(self) -> Path:
        """The file of the exit code, which `_worker.sh.j2` writes."""
        return Path(self.log).parent / f"{self.job_id}.exit"

    def exit_code(self) -> int | None:
        """Return the exit code that the job left, or None."""
        try:
            return int(self.exit_file.read_text())
        except (OSError, ValueError):
            return None

    @property
    def last_status(self) -> Status:
        """The status as last recorded."""
        known = self.state in JobState.__members__
        return Status(JobState[self.state] if known else JobState.UNKNOWN, self.detail)

    def with_status(self, status: Status) -> Record:
        """Return the record with a new status."""
        return dataclasses.replace(self, state=status.state.name, detail=status.detail)


def folder() -> Path:
    """Return the folder of all records."""
    return Path(platformdirs.user_state_dir("merge-launch")) / "jobs"


def path_of(record: Record, suffix: str = ".json") -> Path:
    """Return the file of a record; other suffixes are for texts of jobs without an OUT.job/."""
    return folder() / f"{record.backend}.{quote(record.job_id, safe='[]')}{suffix}"


def save(record: Record) -> None:
    """Write a record to the state folder. Raises OSError if it cannot be written."""
    folder().mkdir(parents=True, exist_ok=True)
    write_file(path_of(record), _text(record))


def save_copy(record: Record) -> None:
    """Write a copy to OUT.job/, if there is one, so that other machines find the job by OUT."""
    if Path(record.log).parent.is_dir() and Path(record.log).is_absolute():
        write_file(record.exit_file.with_suffix(".json"), _text(record))


def _text(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record), indent=1) + "\n"


def load() -> tuple[list[Record], list[str]]:
    """Return all records, newest first, and a message for each unreadable one."""
    return _read(folder().glob("*.json"))


def _read(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    loaded: list[Record] = []
    faults: list[str] = []
    for path in paths:
        try:
            loaded.append(_record(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            faults.append(f"{path}: not a readable record of a job ({error})")
    return sorted(loaded, key=lambda record: (-record.submitted_s, record.job_id)), faults


def _record(values: Any) -> Record:
    if not isinstance(values, dict):
        raise ValueError("expected a mapping")
    # Keys of later versions are ignored.
    known = {field.name for field in dataclasses.fields(Record)}
    record = Record(**{key: value for key, value in values.items() if key in known})
    return dataclasses.replace(record, also=tuple(record.also))  # JSON has lists only


def find(word: str) -> Record:
    """Return the job with an id, name, OUT or unique beginning of an id; the newest of several.

    Raises UsageError if there is none.
    """
    recorded, faults = load()
    out = str(Path.cwd() / Path(word).expanduser()).rstrip("/")
    same_id = [job for job in recorded if job.job_id == word]
    if matches := same_id or [j for j in recorded if j.name == word or j.out.rstrip("/") == out]:
        return _merge_first(matches)
    candidates = [job for job in recorded if job.job_id.startswith(word)] if word else []
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        some = first_names((job.job_id for job in candidates), 4)
        count = f"{len(candidates)} jobs begin with this"
        raise UsageError(f"{printable(word)}: {count} ({some}); give more of the id")
    if copies := copies_in(Path(f"{out}.job")):
        return _merge_first(copies)
    known = [name for job in recorded for name in (job.job_id, job.name) if name]
    more = f"\n  {faults[0]}" if faults else ""
    raise UsageError(
        f"{printable(word)}: no job of this id, name or OUT was submitted from here"
        f"{nearest(word, known)}{more}"
    )


def copies_in(folder: Path) -> list[Record]:
    """Return the copies of records in an OUT.job/, newest first."""
    return _read(folder.glob("*.json"))[0]


def _merge_first(matches: list[Record]) -> Record:
    # OUT names the merge rather than the job that follows it.
    return next((job for job in matches if not job.after), matches[0])


def waiting_for(record: Record) -> list[Record]:
    """Return the jobs that start after this one."""
    key = record.backend, record.job_id
    return [job for job in load()[0] if (job.backend, job.after) == key]
