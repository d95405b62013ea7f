"""Records of submitted jobs: one small file for each in the user's state folder.

The scheduler and the exit code of the job take precedence over the recorded status. OUT.job/ holds
a copy of the record. Files are replaced atomically, so that several processes may write.

What is read becomes arguments of commands and jobs: ids must have the form that their backend gives
them, and files in job folders must be this user's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs

from merge_worker.messages import first_names, nearest, printable
from merge_worker.output.files import MANIFEST, write_file

from .. import backends
from ..backends.base import JobState, Scheduler, Status
from ..errors import UsageError
from ..job.source import job_folder, safe_name


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
    cluster: str = ""
    user: str = ""
    job_name: str = ""
    """The scheduler's name of the job if it is not `name`; members have that of their array."""
    log_bytes: int = 0
    """The size of the log at submission."""
    state: str = JobState.UNKNOWN.name
    detail: str = ""
    proof: str = MANIFEST
    """The file in OUT that shows that the job has done its part."""
    superseded: bool = False
    """Whether a later record has the same id on the same cluster."""

    @property
    def key(self) -> str:
        """The identity of the job: ids come again, on another cluster and after a while."""
        submitted = str(int(self.submitted_s)) if self.submitted_s else ""
        names = (quote(name, safe="[]") for name in (self.backend, self.cluster, self.job_id))
        words = (*names, submitted)
        return ".".join(word for word in words if word)

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

    def lacks_manifest(self) -> bool:
        """Return whether an OUT that can be seen from here holds no finished work."""
        outs = [Path(out) for out in (self.out, *self.also)]
        is_here = Path(self.log).parent.is_dir()
        return is_here and not all((out / self.proof).is_file() for out in outs)

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
    return folder() / f"{record.key}{suffix}"


def keep(record: Record) -> Record:
    """Write a record and its copy, as far as possible, since its job exists; return it."""
    for write in (save, save_copy):
        with contextlib.suppress(OSError):
            write(record)
    return record


def save(record: Record) -> None:
    """Write a record to the state folder. Raises OSError if it cannot be written."""
    folder().mkdir(parents=True, exist_ok=True)
    write_file(path_of(record), _text(record))


def save_copy(record: Record) -> None:
    """Write a copy to OUT.job/, if there is one, so that other machines find the job by OUT."""
    if Path(record.log).parent.is_dir() and Path(record.log).is_absolute():
        write_file(record.exit_file.with_suffix(".json"), _text(record))


def is_kept(record: Record) -> bool:
    """Return whether the state folder holds the record."""
    return path_of(record).is_file()


def is_kept_in_job_folder(record: Record) -> bool:
    """Return whether OUT.job/ holds a copy of the record."""
    return record.exit_file.with_suffix(".json").is_file()


def _text(record: Record) -> str:
    values = dataclasses.asdict(record)
    del values["superseded"]
    return json.dumps(values, indent=1) + "\n"


def latest(record: Record) -> Record:
    """Return a record as it is kept now; the given one if it is not."""
    return next((kept for kept in load()[0] if kept.key == record.key), record)


def warning_of_unkept(submitted: Sequence[Record]) -> str | None:
    """Return a warning of jobs whose record could not be written; they are submitted already."""
    unkept = [record for record in submitted if not is_kept(record)]
    if not unkept:
        return None
    by_out = all(is_kept_in_job_folder(record) for record in unkept)
    known = "will know it by OUT only" if by_out else "will not know it; note its id"
    return (
        f"cannot note the job in {folder()}, which is full or cannot be written: "
        f"'logs', 'status' and 'cancel' {known}"
    )


def load() -> tuple[list[Record], list[str]]:
    """Return all records, newest first, and a message for each unreadable one."""
    recorded, faults = _read(folder().glob("*.json"), lambda path: path.read_text(encoding="utf-8"))
    marked: dict[str, Record] = {}
    ids = set()
    for record in recorded:
        same = record.backend, record.cluster, record.job_id
        # Earlier versions wrote a file without the time of submission.
        marked.setdefault(record.key, dataclasses.replace(record, superseded=same in ids))
        ids.add(same)
    return list(marked.values()), faults


def _read(paths: Iterable[Path], read: Callable[[Path], str]) -> tuple[list[Record], list[str]]:
    loaded: list[Record] = []
    faults: list[str] = []
    for path in paths:
        try:
            loaded.append(_record(json.loads(read(path))))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            faults.append(printable(f"{path}: not a readable record of a job ({reason})"))
    return sorted(loaded, key=lambda record: (-record.submitted_s, record.job_id)), faults


def read_own(path: Path) -> str:
    """Return the text of a file of this user. Raises OSError, also for a file of another user."""
    with path.open("rb") as file:
        owner = os.fstat(file.fileno()).st_uid
        if owner != os.geteuid():
            raise PermissionError(errno.EPERM, f"belongs to another user, of id {owner}")
        return file.read().decode(errors="surrogateescape")


def _record(values: Any) -> Record:
    if not isinstance(values, dict):
        raise ValueError("expected a mapping")
    known = {key: value for key, value in values.items() if key in _FIELDS}  # not of later versions
    for key, value in known.items():
        if not _FIELDS[key](value):
            raise ValueError(f"'{key}' is not as jobs are recorded")
    known["also"] = tuple(known.get("also", ()))  # JSON has lists only
    record = Record(**known)
    if record.backend not in backends.names():
        raise ValueError(f"unknown backend '{record.backend}'")
    pattern = backends.get(record.backend).job_id_pattern
    for job_id in (record.job_id, *([record.after] if record.after else [])):
        if not re.fullmatch(pattern, job_id, re.ASCII):
            raise ValueError(f"'{job_id}': an id that no scheduler gives")
    if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)?", record.cluster):
        raise ValueError(f"'{record.cluster}' must be the name of a cluster")
    return record


def _is_text(value: object) -> bool:
    """Return whether a value can be the name of a file, or part of one."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:  # half of a character, which JSON can escape
        return False


_FORMS: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "int": lambda value: type(value) is int and 0 <= value < 1 << 63,
    "float": lambda value: type(value) in (int, float) and 0 <= value < LATEST,
    "bool": lambda value: type(value) is bool,
    "Mapping[str, str]": lambda value: type(value) is dict and all(map(_is_text, value.values())),
    "tuple[str, ...]": lambda value: type(value) is list and all(map(_is_text, value)),
}
"""What the fields of a record may hold, by their type. Records may be copies of other users."""
_FIELDS = {field.name: _FORMS[str(field.type)] for field in dataclasses.fields(Record)}

LATEST = 1e11
"""Seconds, in the year 5138; times far beyond cannot be shown."""


def find(word: str, exact: bool = False) -> Record:
    """Return the job of a word as in `find_all`. Raises UsageError if it is several."""
    found = find_all(word, exact)
    if len(found) > 1:
        some = first_names((job.job_id for job in found), 4)
        raise UsageError(f"{printable(word)}: {len(found)} jobs ({some}); name one of them")
    return found[0]


def find_all(word: str, exact: bool = False) -> list[Record]:
    """Return the job with an id, name or OUT, the newest of several.

    The word may also stand for several jobs: the id of an array, or the folder of a sweep. Unless
    `exact`, the unique beginning of an id will do. Raises UsageError if there is none.
    """
    recorded, faults = load()
    out = str(Path.cwd() / Path(word).expanduser()).rstrip("/")
    same_id = [job for job in recorded if job.job_id == word]
    numbered = [job for job in recorded if job.job_id.partition(".")[0] == word]
    if same_id or len({job.job_id for job in numbered}) == 1:
        return [_nearest_cluster(same_id or numbered)]
    if members := [job for job in recorded if word in _array_words(job)]:
        first = _array(_nearest_cluster(members))
        return _in_order(job for job in members if _array(job) == first)
    names = (word, safe_name(word)) if word else ()
    if matches := [job for job in recorded if job.name in names or job.out.rstrip("/") == out]:
        return [_merge_first(matches)]
    is_folder = word.strip("./") != ""
    below = [job for job in recorded if str(Path(job.out).parent) == out]
    if below and is_folder:
        return _newest_of_each_out(below)
    begun = numbered
    if word and not exact:
        begun = [job for job in recorded if job.job_id.startswith(word)]
    if len(begun) == 1:
        return begun
    if begun:
        some = first_names((job.job_id for job in begun), 4)
        count = f"{len(begun)} jobs begin with this"
        raise UsageError(f"{printable(word)}: {count} ({some}); give more of the id")
    copies, refused = _read(job_folder(out).glob("*.json"), read_own)
    if copies:
        return [_merge_first(copies)]
    folders = Path(out).glob("*.job") if is_folder else ()
    if copies := [job for folder in folders for job in copies_in(folder)]:
        return _newest_of_each_out(copies)
    known = [name for job in recorded for name in (job.job_id, job.name) if name]
    more = "".join(f"\n  {fault}" for fault in (refused + faults)[:1])
    raise UsageError(
        f"{printable(word)}: no job of this id, name or OUT was submitted from here"
        f"{nearest(word, known)}{more}"
    )


def _nearest_cluster(jobs: Sequence[Record]) -> Record:
    """Return the first job on the cluster that the commands here reach, or else the first job."""
    here: dict[str, str] = {}
    for job in jobs:
        if job.backend not in here:
            backend = backends.get(job.backend)
            here[job.backend] = backend.cluster() if isinstance(backend, Scheduler) else ""
        if job.cluster in ("", here[job.backend]):
            return job
    return jobs[0]


def _array(record: Record) -> tuple[str, str, float]:
    """Return the identity of the array that a job is a member of; its id is "" for another job."""
    backend = backends.get(record.backend)
    array = backend.array_of(record.job_id) if isinstance(backend, Scheduler) else ""
    return array, record.cluster, record.submitted_s


def _array_words(record: Record) -> tuple[str, ...]:
    """Return the words for an array, such as 29[].server, 29[] and 29, of a member."""
    array = _array(record)[0]
    number = array.partition(".")[0]
    return (array, number, number.removesuffix("[]")) if array else ()


def _newest_of_each_out(jobs: Iterable[Record]) -> list[Record]:
    newest: dict[str, Record] = {}
    for job in jobs:
        if not job.after:
            newest.setdefault(job.out, job)
    return _in_order(newest.values())


def _in_order(jobs: Iterable[Record]) -> list[Record]:
    """Sort jobs by submission, and members of an array by their numbers."""
    return sorted(
        jobs, key=lambda job: (job.submitted_s, [*map(int, re.findall(r"\d+", job.job_id))])
    )


def copies_in(folder: Path) -> list[Record]:
    """Return the copies of this user's records in an OUT.job/, newest first."""
    return _read(folder.glob("*.json"), read_own)[0]


def _merge_first(matches: list[Record]) -> Record:
    # OUT names the merge rather than the job that follows it.
    return next((job for job in matches if not job.after), matches[0])


def waits_for(job: Record, first: Record) -> bool:
    """Return whether a job starts after another."""
    same = (job.backend, job.cluster) == (first.backend, first.cluster)
    return same and job.after == first.job_id and job.out in (first.out, *first.also)


def waiting_for(jobs: Sequence[Record]) -> list[Record]:
    """Return the jobs that start after one of these."""
    by_id = {(job.backend, job.job_id): job for job in jobs}
    candidates = ((job, by_id.get((job.backend, job.after))) for job in load()[0] if job.after)
    return [job for job, first in candidates if first is not None and waits_for(job, first)]
