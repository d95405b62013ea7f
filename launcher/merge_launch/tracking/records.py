"""What was submitted from here: one small file for each job in the user's state folder.

Never the only truth: the scheduler and the exit code that the job leaves are asked first, and
OUT.job/ holds a copy of the record. Files are replaced whole, so several processes may write.
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from merge_worker.messages import first_names, nearest, printable

from ..backends.base import JobState, Status
from ..errors import UsageError


@dataclass(frozen=True)
class Record:
    """A job as it was submitted, and the last that was heard of it. Times are Unix seconds."""

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
        """Where the job leaves its exit code; `_worker.sh.j2` writes it."""
        return Path(self.log).parent / f"{self.job_id}.exit"

    def exit_code(self) -> int | None:
        try:
            return int(self.exit_file.read_text())
        except (OSError, ValueError):
            return None

    @property
    def last_status(self) -> Status:
        known = self.state in JobState.__members__
        return Status(JobState[self.state] if known else JobState.UNKNOWN, self.detail)

    def with_status(self, status: Status) -> Record:
        return dataclasses.replace(self, state=status.state.name, detail=status.detail)


def this_host() -> str:
    return socket.gethostname()


def folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("merge-launch")) / "jobs"


def path_of(record: Record, suffix: str = ".json") -> Path:
    """With another suffix: what else is kept of a job that leaves nothing in OUT.job/."""
    return folder() / f"{record.backend}.{quote(record.job_id, safe='[]')}{suffix}"


def save(record: Record) -> None:
    """OSError when the state folder cannot be written."""
    folder().mkdir(parents=True, exist_ok=True)
    _write(path_of(record), text_of(record))


def save_copy(record: Record) -> None:
    """In OUT.job/, where OUT finds it on another machine; not of jobs that leave nothing there."""
    if Path(record.log).parent.is_dir() and Path(record.log).is_absolute():
        _write(record.exit_file.with_suffix(".json"), text_of(record))


def _write(path: Path, text: str) -> None:
    from merge_worker.output.files import write_file

    write_file(path, text)


def text_of(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record), indent=1) + "\n"


def load() -> tuple[list[Record], list[str]]:
    """All records, newest first, and a line on each that cannot be read."""
    return _read(folder().glob("*.json"))


def _read(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    found: list[Record] = []
    faults: list[str] = []
    for path in paths:
        try:
            found.append(_record(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            faults.append(f"{path}: not a readable record of a job ({error})")
    return sorted(found, key=lambda record: (-record.submitted_s, record.job_id)), faults


def _record(values: Any) -> Record:
    """Keys of later versions are left alone."""
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    known = {each.name for each in dataclasses.fields(Record)}
    found = Record(**{key: value for key, value in values.items() if key in known})
    return replace(found, also=tuple(found.also))  # JSON has lists only


def find(word: str) -> Record:
    """By id, name, OUT or a beginning of one id alone; of several with a name or OUT the newest."""
    held, faults = load()
    out = str(Path.cwd() / Path(word).expanduser())
    for found in (
        [each for each in held if each.job_id == word],
        [each for each in held if each.name == word or each.out.rstrip("/") == out.rstrip("/")],
    ):
        if found:
            return _merge_first(found)
    begins = [each for each in held if each.job_id.startswith(word)] if word else []
    if len(begins) == 1:
        return begins[0]
    if begins:
        some = first_names((each.job_id for each in begins), 4)
        raise UsageError(f"{printable(word)}: {len(begins)} jobs begin so ({some}); say more of it")
    copies = copies_in(Path(f"{out.rstrip('/')}.job"))
    if copies:
        return _merge_first(copies)
    known = [name for each in held for name in (each.job_id, each.name) if name]
    more = f"\n  {faults[0]}" if faults else ""
    raise UsageError(
        f"{printable(word)}: no such job was submitted from here{nearest(word, known)}{more}"
    )


def copies_in(folder: Path) -> list[Record]:
    """The copies in an OUT.job/, newest first."""
    return _read(folder.glob("*.json"))[0]


def _merge_first(found: list[Record]) -> Record:
    """OUT names the merge rather than what waits for it."""
    return next((each for each in found if not each.after), found[0])


def waiting_for(record: Record) -> list[Record]:
    """The jobs that start after this one."""
    held, _ = load()
    same = [each for each in held if each.backend == record.backend]
    return [each for each in same if each.after == record.job_id]
