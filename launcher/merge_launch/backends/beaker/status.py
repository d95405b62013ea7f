"""What Beaker's numbers mean: states of workloads, reasons of their ends, failures of calls.

Takes the protobuf messages as they come and imports none of them: a number that is not in these
tables is of a later release, and is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merge_worker.messages import printable

from ..base import JobState, Status, state_of_exit

STATES = {
    1: (JobState.QUEUED, "submitted"),
    2: (JobState.QUEUED, "queued"),
    3: (JobState.QUEUED, "initializing"),
    4: (JobState.RUNNING, "running"),
    5: (JobState.RUNNING, "stopping"),
    6: (JobState.RUNNING, "uploading results"),
    7: (JobState.CANCELLED, "canceled"),
    8: (JobState.DONE, "succeeded"),
    9: (JobState.FAILED, "failed"),
    10: (JobState.QUEUED, "ready to start"),
}
OVER = (7, 8, 9)
CANCELED, FAILED = 7, 9
CANCELATIONS = {
    1: "preempted by the system",
    2: "preempted by a user",
    3: "it was idle",
    4: "cancelled by a user",
    5: "its time limit ran out",
    6: "its node was lost",
    7: "no node can ever run it: ask for less, or for other clusters",
    8: "another task of it failed",
    9: "another replica was preempted",
    10: "its node failed a health check",
    11: "another replica was started again",
    12: "its node was unhealthy",
}
BY_SOMEBODY, IMPOSSIBLE = 4, 7


def last_run(jobs: Sequence[Any]) -> Any | None:
    """Of jobs, newest first, the one that speaks for the last run: of replicas one that failed."""
    if not jobs:
        return None
    size = max(1, jobs[0].system_details.replica_group_details.size)
    failed = [job for job in jobs[:size] if job.status.exit_code or job.status.canceled_code]
    return (failed or jobs)[0]


def verdict(state: int, jobs: Sequence[Any]) -> Status:
    """Of a workload in this state; its jobs, newest first, are the times it was started."""
    known, words = STATES.get(state, (JobState.UNKNOWN, f"status {state}"))
    job = last_run(jobs)
    if job is None:
        return Status(known, words)
    status = job.status
    code = status.exit_code if status.HasField("exit_code") else None
    ended_by = status.canceled_code
    if state == FAILED and code is not None:
        known = state_of_exit(code)
    elif state in (CANCELED, FAILED) and ended_by not in (0, BY_SOMEBODY, IMPOSSIBLE):
        known = JobState.STOPPED
    said = [words]
    if ended_by:
        said.append(CANCELATIONS.get(ended_by, f"cancelation code {ended_by}"))
    if code is not None and state in OVER:
        said.append(f"exit code {code}")
    return Status(known, ", ".join(said), tuple(_reasons(jobs, job)))


def _reasons(jobs: Sequence[Any], last: Any) -> list[str]:
    status = last.status
    size = max(1, last.system_details.replica_group_details.size)
    found = []
    earlier = {
        CANCELATIONS.get(code, f"cancelation code {code}")
        for job in jobs[size:]
        if (code := job.status.canceled_code)
    }
    if len(jobs) > size:
        why = f" ({'; '.join(sorted(earlier))})" if earlier else ""
        found.append(f"It was started {-(-len(jobs) // size)} times{why}.")
    for text in (status.failed_scheduling_message, status.message, status.canceled_for):
        if text:
            found.append(printable(text))
    return found


EVENTS = 6


def events(found: Sequence[Any]) -> tuple[str, ...]:
    """The last events of a job, the newest last."""
    ordered = sorted(found, key=lambda event: int(event.latest_occurrence.ToNanoseconds()))
    lines = []
    for event in ordered[-EVENTS:]:
        when = event.latest_occurrence.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
        often = f" ({event.occurrences} times)" if event.occurrences > 1 else ""
        lines.append(printable(f"{when}  {event.status}{often}: {event.latest_message}"))
    return tuple(lines)


def in_words(error: Exception, deadline_s: float) -> str:
    """One line on whatever beaker-py, grpc or requests raised."""
    code = getattr(error, "code", None)
    if callable(code):
        status = str(getattr(code(), "name", code()))
        known = {
            "UNAVAILABLE": "the server cannot be reached; are you on line, is the address right?",
            "DEADLINE_EXCEEDED": f"the server did not answer within {deadline_s:.0f} s",
            "UNAUTHENTICATED": "the server refused the token; check BEAKER_TOKEN or your config",
            "PERMISSION_DENIED": "the token may not do this",
        }
        details = printable(str(getattr(error, "details", str)()))
        return known.get(status, f"{status}: {details}")
    kind = type(error).__name__
    if kind in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "ProxyError"):
        return "the server's web address cannot be reached or did not answer"
    text = printable(" ".join(str(error).split())) or "no reason given"
    if "code=401" in text:
        return "the server refused the token; check BEAKER_TOKEN or your config"
    return text if kind == "BeakerError" else f"{kind}: {text}"
