"""What PBS says of a job → states and sentences. Codes as seen with OpenPBS 23.06, letters also of
Torque."""

from __future__ import annotations

import json
import re
from typing import Any

from ..base import JobState, Status, state_of_exit

# MERGED The two forms of what qstat prints → the fields of each job, by their names in small
# letters.
#
# JSON is asked for, since there a value ends where it ends: in the text, a variable of the user's
# may
# go on with what looks like the next field. What JSON has as numbers is text again here, so that
# one
# reader serves both. The variables of a job are left out: JSON has them as other values than were
# given (007 as 7, 1e5 as 100000), and nothing may be read back from there.


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


QUEUED = {
    "Q": "It is in the queue.",
    "H": "It is held: it waits for another job, or somebody holds it.",
    "W": "It waits for the time that -a names.",
    "T": "It is being moved to another server.",
    "M": "It was moved to another server.",
}
RUNNING = {
    "R": "",
    "E": "It is ending.",
    "S": "It is suspended, for a more urgent job.",
    "U": "It is suspended, since somebody uses the machine.",
    "B": "It is an array that has begun.",
}
KILLS = {
    -1: "PBS could not start it.",
    -2: "PBS could not start it.",
    -3: "PBS could not start it, and tries again.",
    -10: "PBS does not know the user on the node.",
    -11: "PBS put it back into the queue.",
    -20: "Its node was lost.",
    -24: "It used more cores than it asked for.",
    -25: "It used more virtual memory than it asked for (-l vmem).",
    -27: "It used more memory than it asked for (--mem).",
    -28: "It used more processor time than it asked for (-l cput).",
    -29: "Its walltime was over.",
}
RESUMABLE = (-29, -20, -11)
DROPPED = "It ended without having run: deleted, or what it waited for failed."


def statuses(text: str) -> dict[str, Status] | None:
    """Without jobs of which it does not say how they ended, though they ran: so is the qstat that
    some sites have in front of Slurm. None of an answer that cannot be read."""
    jobs = decoded(text)
    if jobs is None:
        return None
    return {job_id: status(fields) for job_id, fields in jobs.items() if not _mute(fields)}


def _mute(fields: Fields) -> bool:
    ended_somehow = fields.get("job_state") == "C" and "exit_status" not in fields
    return ended_somehow and "exec_host" in fields


def status(fields: Fields) -> Status:
    code = fields.get("job_state", "?")
    comment = fields.get("comment", "")
    reasons = [f"PBS says: {comment}."] if comment else []
    if code in "FCX":
        return ended(fields.get("exit_status"), comment, reasons)
    detail = f"{code}: {comment}" if comment else code
    if code in QUEUED:
        return Status(JobState.QUEUED, detail, (QUEUED[code], *_waits(fields), *reasons))
    if code in RUNNING:
        runs = fields.get("run_count", "1")
        more = [f"This is its run number {runs}."] if runs not in ("0", "1") else []
        said = [RUNNING[code]] if RUNNING[code] else []
        return Status(JobState.RUNNING, detail, (*said, *more, *reasons))
    return Status(JobState.UNKNOWN, detail, (f"PBS gives its state as '{code}'.", *reasons))


def _waits(fields: Fields) -> list[str]:
    found = []
    if fields.get("hold_types", "n") not in ("n", ""):
        kinds = {"u": "its user", "o": "an operator", "s": "the system", "p": "a bad password"}
        who = ", ".join(kinds.get(each, each) for each in fields["hold_types"])
        found.append(f"The hold is that of {who}.")
    if "depend" in fields:
        found.append(f"It waits for {fields['depend']}.")
    if fields.get("queue"):
        found.append(f"Its queue is {fields['queue']}.")
    return found


def ended(exit_status: str | None, comment: str, reasons: list[str]) -> Status:
    """Above 256 the batch system killed it, below 0 it did so for a reason of its own."""
    if exit_status is None or not re.fullmatch(r"-?\d+", exit_status):
        return Status(JobState.CANCELLED, comment or "it ended without having run", (DROPPED,))
    code = int(exit_status)
    detail = f"exit status {code}" + (f": {comment}" if comment else "")
    if code > 256:
        state = JobState.CANCELLED if code - 256 in (9, 15) else JobState.FAILED
        return Status(state, detail, (f"It was ended by signal {code - 256}.", *reasons))
    if code < 0:
        state = JobState.STOPPED if code in RESUMABLE else JobState.FAILED
        said = KILLS.get(code, f"PBS ended it for its reason {code}.")
        return Status(state, detail, (said, *reasons))
    return Status(state_of_exit(code), detail, tuple(reasons))
