"""The two forms of what qstat prints → the fields of each job, by their names in small letters.

JSON is asked for, since there a value ends where it ends: in the text, a variable of the user's may
go on with what looks like the next field. What JSON has as numbers is text again here, so that one
reader serves both. The variables of a job are left out: JSON has them as other values than were
given (007 as 7, 1e5 as 100000), and nothing may be read back from there.
"""

from __future__ import annotations

import json
import re
from typing import Any

Fields = dict[str, str]

BEGINNING = re.compile(r"^(?:Job Id:|\{)", re.MULTILINE)
RECORD = re.compile(r"^Job Id:[ \t]*(\S+)[ \t]*$", re.MULTILINE)
FIELD = re.compile(r"^ +([\w.]+) = (.*)$", re.MULTILINE)


def decoded(text: str) -> dict[str, Fields] | None:
    """By job id; None of JSON that cannot be read. A site may print a greeting in front."""
    found = BEGINNING.search(text)
    if found is None:
        return {}
    answer = text[found.start() :]
    return _from_json(answer) if answer.startswith("{") else _from_text(answer)


def _from_json(answer: str) -> dict[str, Fields] | None:
    """Older versions print control characters, and values such as 007, as they are."""
    try:
        document = json.loads(answer, object_pairs_hook=_once, strict=False)
        # Where no job matched, there is no such key.
        return {job_id: _scalars(job) for job_id, job in document.get("Jobs", {}).items()}
    except (ValueError, AttributeError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A value that was not escaped can end its object and begin the fields anew."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _scalars(job: dict[str, Any]) -> Fields:
    return {
        key.lower(): str(int(value) if isinstance(value, float) and value.is_integer() else value)
        for key, value in job.items()
        if isinstance(value, str | int | float)
    }


def _from_text(answer: str) -> dict[str, Fields]:
    words = RECORD.split(answer)[1:]
    return {job_id: _lines(body) for job_id, body in zip(words[::2], words[1::2], strict=True)}


def _lines(body: str) -> Fields:
    # Long values go on in lines that begin with a tab; in front of Slurm every field does.
    lines = body.replace("\n\t", "\n    " if body.startswith("\n\t") else "")
    fields: Fields = {}
    for key, value in FIELD.findall(lines):
        fields.setdefault(key.lower(), value.strip())
    return fields
