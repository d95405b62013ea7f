"""Statuses from the answers of Beaker: states of workloads, reasons of their ends, failed calls.

The functions take protobuf messages without importing their classes. A number missing from these
tables belongs to a later release and is shown as it is.
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
ENDED = (7, 8, 9)
CANCELED, FAILED = 7, 9
CANCELATIONS = {
    1: "preempted by the system",
    2: "preempted by a user",
    3: "idle",
    4: "cancelled by a user",
    5: "time limit reached",
    6: "node lost",
    7: "no node can ever run the job: request less, or other clusters",
    8: "another task of the experiment failed",
    9: "another replica was preempted",
    10: "node failed a health check",
    11: "another replica was restarted",
    12: "node unhealthy",
}
BY_USER, IMPOSSIBLE = 4, 7


def last_run(jobs: Sequence[Any]) -> Any | None:
    """Return the job that represents the last run: of its replicas, one that failed.

    `jobs` are ordered newest first.
    """
    if not jobs:
        return None
    failed = [
        job
        for job in jobs[: _replicas(jobs[0])]
        if job.status.exit_code or job.status.canceled_code
    ]
    return (failed or jobs)[0]


def _replicas(job: Any) -> int:
    return max(1, int(job.system_details.replica_group_details.size))


def workload_status(state: int, jobs: Sequence[Any]) -> Status:
    """Return the status of a workload in this state; `jobs` are its runs, newest first."""
    job_state, words = STATES.get(state, (JobState.UNKNOWN, f"status {state}"))
    job = last_run(jobs)
    if job is None:
        return Status(job_state, words)
    status = job.status
    code = status.exit_code if status.HasField("exit_code") else None
    ended_by = status.canceled_code
    if state == FAILED and code is not None:
        job_state = state_of_exit(code)
    elif state in (CANCELED, FAILED) and ended_by not in (0, BY_USER, IMPOSSIBLE):
        job_state = JobState.STOPPED
    details = [words]
    if ended_by:
        details.append(CANCELATIONS.get(ended_by, f"cancelation code {ended_by}"))
    if code is not None and state in ENDED:
        details.append(f"exit code {code}")
    return Status(job_state, ", ".join(details), tuple(_reasons(jobs, job)))


def _reasons(jobs: Sequence[Any], last: Any) -> list[str]:
    status = last.status
    size = _replicas(last)
    codes = (job.status.canceled_code for job in jobs[size:])
    earlier = {CANCELATIONS.get(code, f"cancelation code {code}") for code in codes if code}
    reasons = []
    if len(jobs) > size:
        causes = f" ({'; '.join(sorted(earlier))})" if earlier else ""
        reasons.append(f"Started {-(-len(jobs) // size)} times{causes}.")
    texts = (status.failed_scheduling_message, status.message, status.canceled_for)
    return reasons + [printable(text) for text in texts if text]


EVENTS = 6


def event_lines(events: Sequence[Any]) -> tuple[str, ...]:
    """Return a line for each of the last events of a job, the newest last."""
    ordered = sorted(events, key=lambda event: int(event.latest_occurrence.ToNanoseconds()))
    lines = []
    for event in ordered[-EVENTS:]:
        when = event.latest_occurrence.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
        count = f" ({event.occurrences} times)" if event.occurrences > 1 else ""
        lines.append(printable(f"{when}  {event.status}{count}: {event.latest_message}"))
    return tuple(lines)


def describe_error(error: Exception, deadline_s: float) -> str:
    """Return one line on an error of beaker-py, grpc or requests."""
    code = getattr(error, "code", None)
    if callable(code):
        status = str(getattr(code(), "name", code()))
        known = {
            "UNAVAILABLE": "server not reachable; check the network and the address",
            "DEADLINE_EXCEEDED": f"no answer within {deadline_s:.0f} s",
            "UNAUTHENTICATED": "token rejected; check BEAKER_TOKEN or your config",
            "PERMISSION_DENIED": "permission denied for this token",
        }
        details = printable(str(getattr(error, "details", str)()))
        return known.get(status, f"{status}: {details}")
    kind = type(error).__name__
    if kind in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Timeout", "ProxyError"):
        return "web address not reachable, or no answer"
    text = printable(" ".join(str(error).split())) or "no reason given"
    if "code=401" in text:
        return "token rejected; check BEAKER_TOKEN or your config"
    return text if kind == "BeakerError" else f"{kind}: {text}"
