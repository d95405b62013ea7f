"""What was submitted from here: one small file for each job in the user's state folder.

Never the only truth: the scheduler and the exit code that the job leaves are asked first.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from worker.errors import nearest, printable

from .command import replace_text
from .errors import UsageError


@dataclass(frozen=True)
class Record:
    job_id: str
    backend: str
    dialect: str
    out: str
    log: str

    @property
    def exit_file(self) -> Path:
        """Where the job leaves its exit code; `_worker.sh.j2` writes it."""
        return Path(self.log).parent / f"{self.job_id}.exit"

    def exit_code(self) -> int | None:
        try:
            return int(self.exit_file.read_text())
        except (OSError, ValueError):
            return None


def folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_state_dir("merge-launch")) / "jobs"


def _file(job_id: str) -> Path:
    return folder() / f"{quote(job_id, safe='[]')}.json"


def keep(record: Record) -> None:
    """OSError when the state folder cannot be written."""
    folder().mkdir(parents=True, exist_ok=True)
    replace_text(_file(record.job_id), json.dumps(dataclasses.asdict(record)) + "\n")


def find(job_id: str) -> Record:
    try:
        return Record(**json.loads(_file(job_id).read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = [unquote(path.stem) for path in folder().glob("*.json")]
        raise UsageError(
            f"{printable(job_id)}: no such job was submitted from here{nearest(job_id, known)}"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{_file(job_id)}: not a readable record of a job ({error})") from None
