"""Why a job is as it is, in plain words: from its state, what the scheduler said, and its log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..backends.base import JobState, Status
from .logs import PROGRESS, clean

LINES = 6
NOTED = re.compile(
    r"(?i)merge-(worker|launch):(?! begun on )|error|traceback|exception|killed|out of memory|"
    r"denied|no space|no such file|not found|=>> PBS|slurmstepd"
)
CODES = {
    1: "a bug of merge-worker, or a failing line of --setup or --then; the log says which",
    2: "the recipe or an option is wrong: mend it and submit anew",
    3: "an input is missing, damaged or does not fit the others",
    4: "the output cannot be written, or another merge is there",
    5: "the result would have held NaN or infinity",
    6: "the cluster did not start all that it should have",
    75: "stopped before its end and resumable",
    126: "a program could not be run on the node",
    127: "a program was not found on the node: see --python and --setup",
    137: "killed: the memory of the job was too small, or somebody killed it",
}
STATES = {
    JobState.QUEUED: "It waits to be started.",
    JobState.RUNNING: "It runs.",
    JobState.DONE: "It is done.",
    JobState.FAILED: "It failed.",
    JobState.CANCELLED: "It was cancelled.",
    JobState.STOPPED: "It was stopped before its end; what is merged so far stays.",
    JobState.UNKNOWN: "Nobody knows what became of it.",
}


def exit_code_of(status: Status, left: int | None) -> int | None:
    """The exit code that a job left, else what a scheduler says of it."""
    said = re.search(r"exit code (\d+)$", status.detail) if left is None else None
    return int(said[1]) if said else left


def explain(
    job_id: str, status: Status, code: int | None, more: Sequence[str], log: Iterable[str]
) -> list[str]:
    """Sentences, then the lines of the log that tell most."""
    found = [STATES[status.state]]
    said = (*status.reasons, *more)
    for each in said or ((status.detail,) if status.detail and code is None else ()):
        if each not in found:
            found.append(each)
    if code and status.state is not JobState.QUEUED:
        found.append(f"Its exit code is {code}: {CODES.get(code, 'see the log')}.")
    if status.state not in (JobState.DONE, JobState.QUEUED):
        found += [f"  | {line}" for line in telling_lines(log)]
    if status.state in (JobState.STOPPED, JobState.FAILED, JobState.CANCELLED):
        found.append(f"To go on where it was: merge-launch retry {job_id}")
    return found


def telling_lines(log: Iterable[str]) -> list[str]:
    """The last lines that name a fault, else simply the last lines."""
    every: list[str] = []
    noted: list[str] = []
    for line in log:
        shown = clean(line, color=False).rstrip()
        if not shown.strip() or PROGRESS.search(shown):
            continue
        every = [*every[1 - LINES :], shown]
        if NOTED.search(shown):
            noted = [*noted[1 - LINES :], shown]
    return noted or every[-2:]
