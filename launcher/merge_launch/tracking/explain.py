"""Explanations of why a job is pending or how it ended: from its status, exit code and log."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

from ..backends.base import JobState, Status
from .logs import PROGRESS, clean

LINES = 6
NOTED = re.compile(
    r"(?i)merge-(worker|launch):(?! begun on )|error|traceback|exception|killed|out of memory|"
    r"denied|no space|no such file|not found|=>> PBS|slurmstepd|the job asked for \d+ GPU"
)
MISSING_GPUS = re.compile(r"the job asked for \d+ GPUs?, torch .*")
OURS = re.compile("merge-(worker|launch): ")
# What the log of a job says last → what its exit code means then, whatever it is.
CAUSES = {
    r"torch is missing|pyyaml is missing|hides pyyaml|needs Python|image lacks|does not start": (
        "the Python of the job lacks what the worker needs; see --python and --setup"
    ),
    r"merge-launch: --setup ended with exit code": "a line of --setup failed",
    r"merge-launch: --then .*ended with exit code": ("the merge is done, and --then failed"),
    r"no space left for \d+ bytes of temporary files": "the folder of temporary files is full",
}
CODES = {
    1: "a bug in merge-worker; see the log",
    2: "the recipe or an option is wrong; fix it and submit again",
    3: "an input is missing, damaged or does not fit the others",
    4: "the output cannot be written, or OUT holds another merge",
    5: "the result would contain NaN or infinity",
    6: "the cluster did not start all processes",
    75: "stopped before the end, resumable",
    126: "a program could not be run on the node",
    127: "a program was not found on the node; see --python and --setup",
    137: "killed, by lack of memory or by a user",
}
STATES = {
    JobState.QUEUED: "The job is queued.",
    JobState.RUNNING: "The job is running.",
    JobState.DONE: "The job is done.",
    JobState.FAILED: "The job failed.",
    JobState.CANCELLED: "The job was cancelled.",
    JobState.STOPPED: "The job was stopped before its end; finished work is kept.",
    JobState.UNKNOWN: "Final state unknown.",
}


def exit_code_of(status: Status, left: int | None) -> int | None:
    """Return the exit code that a job left, or the one that the scheduler reports."""
    match = re.search(r"exit code (\d+)$", status.detail) if left is None else None
    return int(match[1]) if match else left


def explain(
    job_id: str, status: Status, code: int | None, more: Sequence[str], log: Iterable[str]
) -> list[str]:
    """Return sentences on a job, with the most telling lines of its log."""
    lines, told = [STATES[status.state]], telling_lines(log)
    reasons = (*status.reasons, *more)
    for reason in reasons or ((status.detail,) if status.detail and code is None else ()):
        if reason not in lines:
            lines.append(reason)
    if code and status.state is not JobState.QUEUED:
        lines.append(f"Exit code {code}: {_meaning(code, told)}.")
    if status.state not in (JobState.DONE, JobState.QUEUED):
        lines += [f"  | {line}" for line in told]
    elif status.state is JobState.DONE:
        found = (MISSING_GPUS.search(line) for line in told)
        lines += [f"The log warns: {match[0]}." for match in found if match]
    if status.state in (JobState.STOPPED, JobState.FAILED, JobState.CANCELLED):
        lines.append(f"To resume: merge-launch retry {job_id}")
    return lines


def _meaning(code: int, told: Sequence[str]) -> str:
    """Return what an exit code means, by our last line in the log or else by its number."""
    last = next((line for line in reversed(told) if OURS.search(line)), "")
    for pattern, meaning in CAUSES.items():
        if re.search(pattern, last):
            return meaning
    if code in CODES:
        return CODES[code]
    return f"killed by signal {code - 128}" if 128 < code < 160 else "see the log"


def telling_lines(log: Iterable[str]) -> list[str]:
    """Return the last lines that report an error, or else the last two lines."""
    last: deque[str] = deque(maxlen=2)
    noted: deque[str] = deque(maxlen=LINES)
    for line in log:
        shown = clean(line, color=False).rstrip()
        if shown.strip() and not PROGRESS.search(shown):
            last.append(shown)
            if NOTED.search(shown):
                noted.append(shown)
    return list(noted or last)
