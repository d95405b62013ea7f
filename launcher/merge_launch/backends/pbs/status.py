"""Statuses from the output of qstat. Codes as seen with OpenPBS 23.06; letters also of Torque.

JSON is preferred, since values there have a definite end: in text output, a user's variable may
continue with something that looks like the next field. Numbers of JSON become text again, so that
the rest serves both formats. Variables of a job are left out: JSON changes their values (007 to 7,
1e5 to 100000).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from typing import Any

from ..base import JobState, Origin, Status, state_of_exit

Fields = dict[str, str]
"""The fields of one job by lowercase name."""

BEGINNING = re.compile(r"^(?:Job Id:|\{)", re.MULTILINE)
RECORD = re.compile(r"^Job Id:[ \t]*(\S+)[ \t]*$", re.MULTILINE)
FIELD = re.compile(r"^ +([\w.]+) = (.*)$", re.MULTILINE)


def parse_qstat(text: str) -> dict[str, Fields] | None:
    """Return the fields of each job by id, or None if the JSON is not valid.

    Text before the answer, such as a greeting of the site, is skipped.
    """
    match = BEGINNING.search(text)
    if match is None:
        return {}
    answer = text[match.start() :]
    return _from_json(answer) if answer.startswith("{") else _from_text(answer)


def _from_json(answer: str) -> dict[str, Fields] | None:
    # Older versions print control characters, and values such as 007, unescaped.
    try:
        document = json.loads(answer, object_pairs_hook=_without_duplicates, strict=False)
        # The key is missing if no job matched.
        return {job_id: _scalars(job) for job_id, job in document.get("Jobs", {}).items()}
    except (ValueError, AttributeError, RecursionError):
        return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse duplicate keys: an unescaped value can end its object and repeat the fields."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("duplicate key")
    return fields


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
    # Long values continue in lines that begin with a tab; in the wrapper of Slurm every field does.
    lines = body.replace("\n\t", "\n    " if body.startswith("\n\t") else "")
    fields: Fields = {}
    for key, value in FIELD.findall(lines):
        fields.setdefault(key.lower(), value.strip())
    return fields


QUEUED = {
    "Q": "The job is in the queue.",
    "H": "The job is on hold, or depends on another job.",
    "W": "The job is waiting for the start time given with -a.",
    "T": "The job is being moved to another server.",
    "M": "The job was moved to another server.",
}
RUNNING = {
    "R": "",
    "E": "The job is exiting.",
    "S": "The job is suspended in favor of a higher-priority job.",
    "U": "The job is suspended because its workstation is in use.",
    "B": "The array has started.",
}
KILLS = {
    -1: "PBS could not start the job.",
    -2: "PBS could not start the job.",
    -3: "PBS could not start the job and will try again.",
    -10: "The user is unknown on the node.",
    -11: "PBS requeued the job.",
    -20: "The node of the job was lost.",
    -24: "The job used more cores than requested.",
    -25: "The job used more virtual memory than requested (-l vmem).",
    -27: "The job used more memory than requested (--mem).",
    -28: "The job used more CPU time than requested (-l cput).",
    -29: "The job reached its walltime.",
}
RESUMABLE = (-29, -20, -11)
NEVER_RAN = "The job never ran: deleted, or the job it depended on failed."


def statuses(text: str) -> dict[str, Status] | None:
    """Return the status of each job in the output of qstat, or None if it is not readable.

    Jobs that ran and ended without an exit status are left out: the qstat wrapper of Slurm, which
    some sites have, does not report it.
    """
    jobs = parse_qstat(text)
    if jobs is None:
        return None
    return {
        job_id: dataclasses.replace(_status(fields), origin=_origin(fields))
        for job_id, fields in jobs.items()
        if not _lost_exit(fields)
    }


def _origin(fields: Fields) -> Origin:
    """Return the origin of a job; its time is in the zone of this machine."""
    user = fields.get("job_owner", "").partition("@")[0]
    submitted_s = None
    with contextlib.suppress(ValueError, OverflowError):
        submitted_s = time.mktime(time.strptime(fields.get("ctime", "")))
    return Origin(fields.get("job_name", ""), user, submitted_s)


def _lost_exit(fields: Fields) -> bool:
    return fields.get("job_state") == "C" and "exec_host" in fields and "exit_status" not in fields


def _status(fields: Fields) -> Status:
    code = fields.get("job_state", "?")
    comment = fields.get("comment", "")
    reasons = [f"PBS says: {comment}."] if comment else []
    if code in "FCX":
        return _ended(fields.get("exit_status"), comment, reasons)
    detail = f"{code}: {comment}" if comment else code
    if code in QUEUED:
        return Status(JobState.QUEUED, detail, (QUEUED[code], *_waits(fields), *reasons))
    if code in RUNNING:
        runs = fields.get("run_count", "1")
        sentences = [RUNNING[code]] if RUNNING[code] else []
        if runs not in ("0", "1"):
            sentences.append(f"This is run number {runs}.")
        return Status(JobState.RUNNING, detail, (*sentences, *reasons))
    return Status(JobState.UNKNOWN, detail, (f"PBS reports the state '{code}'.", *reasons))


def _waits(fields: Fields) -> list[str]:
    sentences = []
    if fields.get("hold_types", "n") not in ("n", ""):
        kinds = {"u": "the user", "o": "an operator", "s": "the system", "p": "a bad password"}
        holders = (kinds.get(letter, letter) for letter in fields["hold_types"])
        sentences.append(f"Held by: {', '.join(holders)}.")
    if "depend" in fields:
        sentences.append(f"The job depends on {fields['depend']}.")
    if fields.get("queue"):
        sentences.append(f"Queue: {fields['queue']}.")
    return sentences


def _ended(exit_status: str | None, comment: str, reasons: list[str]) -> Status:
    """Return the status for an exit status of PBS.

    Above 256, a signal killed the job; below 0, PBS ended it for the reason in KILLS.
    """
    if exit_status is None or not re.fullmatch(r"-?\d+", exit_status):
        return Status(JobState.CANCELLED, comment or "never ran", (NEVER_RAN,))
    code = int(exit_status)
    detail = f"exit status {code}" + (f": {comment}" if comment else "")
    if code > 256:
        state = JobState.CANCELLED if code - 256 in (9, 15) else JobState.FAILED
        return Status(state, detail, (f"Signal {code - 256} killed the job.", *reasons))
    if code < 0:
        state = JobState.STOPPED if code in RESUMABLE else JobState.FAILED
        cause = KILLS.get(code, f"PBS ended the job with its code {code}.")
        return Status(state, detail, (cause, *reasons))
    return Status(state_of_exit(code), detail, tuple(reasons))
