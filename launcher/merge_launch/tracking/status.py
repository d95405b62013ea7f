"""States of jobs: one scheduler call for all jobs, then the exit codes that jobs left."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from merge_worker.messages import printable

from .. import backends
from ..backends.base import (
    JobState,
    LocalBackend,
    Origin,
    Scheduler,
    Service,
    Status,
    state_of_exit,
)
from ..errors import ClusterError, LauncherError, in_one_line
from ..job.job import SHORT_NAME
from ..process import TIMEOUT_S, CommandFailed, answer
from . import records
from .queries import Answer, Questions, on_cluster, portions
from .records import Record

UNPROVEN = "The job ended without an error, but OUT holds no finished merge; does --setup exit?"


class Absent(Status):
    """The status of a job that the scheduler does not have here."""


FORGOTTEN = Absent(JobState.UNKNOWN, "unknown to the scheduler, and no exit code")
SUPERSEDED = Absent(JobState.UNKNOWN, "its id now belongs to a later job")
UNMENTIONED = Status(JobState.UNKNOWN, "not in the answer of the scheduler")
RESUMABLE = 75
SKEW_S = 24 * 3600.0
"""How far apart the clocks, and the time zones, of this machine and a scheduler may be."""


def query(
    jobs: Sequence[Record], include_settled: bool = False, timeout_s: float = TIMEOUT_S
) -> tuple[dict[str, Status], list[LauncherError]]:
    """Return statuses by the key of the record: one scheduler call for all jobs, then exit codes.

    Jobs of a failed call keep their exit code or last recorded status. Changes are recorded.
    """
    statuses = {record.key: record.last_status for record in jobs if is_settled(record)}
    failures: list[LauncherError] = []
    groups: dict[tuple[str, str, str], list[Record]] = {}
    recorded = functools.cache(_by_id)
    for record in jobs:
        if record.superseded:
            statuses.setdefault(record.key, status_from_exit_code(record) or SUPERSEDED)
        elif include_settled or not is_settled(record):
            place = record.backend, record.dialect, record.cluster
            groups.setdefault(place, []).append(record)
    for group in groups.values():
        found = _query_backend(group, timeout_s)
        if found.failure is not None:
            failures.append(found.failure)
        for record in group:
            statuses[record.key] = _status(record, found, recorded)
    for record in jobs:
        now = statuses[record.key]
        if (now.state, now.detail) != (record.last_status.state, record.last_status.detail):
            with contextlib.suppress(OSError):
                records.save(record.with_status(now))
    return statuses, failures


def _status(record: Record, found: Answer, recorded: RecordsById) -> Status:
    reported = found.statuses.get(record.job_id)
    if reported is not None and not is_of(record, reported.origin):
        other = reported.origin
        detail = f"{record.job_id} is another job here: '{other.name}' of user {other.user}"
        return status_from_exit_code(record) or Absent(JobState.UNKNOWN, printable(detail))
    if reported is None and record.job_id in found.unmentioned:
        last = record.last_status
        seen = last if last.state is not JobState.UNKNOWN else UNMENTIONED
        return status_from_exit_code(record) or seen
    if reported is None and found.failure is not None:
        return status_from_exit_code(record) or record.last_status
    return final_status(record, reported, recorded)


def is_of(record: Record, origin: Origin) -> bool:
    """Return whether a job of this origin can be the one that was recorded: ids come again.

    Names may be cut. A requeued job counts as submitted later.
    """
    name = record.job_name or record.name
    cut = len(origin.name) >= SHORT_NAME and name.startswith(origin.name)
    is_named = not (origin.name and name) or origin.name == name or cut
    is_owned = not (origin.user and record.user) or origin.user == record.user
    earliest = record.submitted_s - SKEW_S
    return is_named and is_owned and (origin.submitted_s is None or origin.submitted_s > earliest)


def is_settled(record: Record) -> bool:
    """Return whether the last status is final: no scheduler restarts such a job by itself."""
    return record.last_status.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def query_one(record: Record, include_settled: bool = False) -> Status:
    """Query one job. Raises LauncherError if neither the scheduler nor an exit code is there."""
    statuses, failures = query([record], include_settled)
    if failures and status_from_exit_code(record) is None and not is_settled(record):
        raise failures[0]
    return statuses[record.key]


def status_from_exit_code(record: Record) -> Status | None:
    """Return the status for the exit code that a job left, or None."""
    code = record.exit_code()
    if code is None:
        return None
    return _proven(record, Status(state_of_exit(code), f"exit code {code}"))


def _proven(record: Record, status: Status) -> Status:
    """Return the status, or a failure if it is a success without a finished merge."""
    if status.state is not JobState.DONE or not record.lacks_manifest():
        return status
    detail = f"{status.detail}, no finished merge".removeprefix(", ")
    return Status(JobState.FAILED, detail, (*status.reasons, UNPROVEN))


RecordsById = Callable[[], Mapping[str, Sequence[Record]]]
"""All records by the id of their job, read when they are first needed."""


def _by_id() -> Mapping[str, Sequence[Record]]:
    by_id: dict[str, list[Record]] = {}
    for job in records.load()[0]:
        by_id.setdefault(job.job_id, []).append(job)
    return by_id


def _dropped(record: Record, recorded: RecordsById) -> Status | None:
    """Return the status of a job that a scheduler forgot because the one before it failed."""
    before = recorded().get(record.after, ())
    awaited = [job for job in before if records.waits_for(record, job) and is_settled(job)]
    ended = [job for job in awaited if job.last_status.state is not JobState.DONE]
    return Status(JobState.CANCELLED, f"never started: {record.after} failed") if ended else None


def final_status(record: Record, reported: Status | None, recorded: RecordsById) -> Status:
    """Combine report and exit code, and believe in success only with the manifest.

    The exit code is more exact, except after a cancellation, which leaves any but 0.
    """
    by_code = status_from_exit_code(record)
    if by_code is not None and reported is not None:
        cancelled = reported.state is JobState.CANCELLED and by_code.state is not JobState.DONE
        if cancelled or not reported.state.has_ended:
            return reported
        reasons = dict.fromkeys((*by_code.reasons, *reported.reasons))
        return dataclasses.replace(by_code, reasons=tuple(reasons))
    if known := reported or by_code:
        return _proven(record, known)
    if is_settled(record):
        return record.last_status
    if record.after and (dropped := _dropped(record, recorded)):
        return dropped
    backend = backends.get(record.backend)
    if isinstance(backend, Scheduler) and backend.status_if_forgotten.detail:
        return backend.status_if_forgotten
    return FORGOTTEN


def exit_code_of(record: Record, status: Status) -> int:
    """Return the exit code of a command that followed a job to this status."""
    if status.state is JobState.DONE:
        return 0
    if status.state in (JobState.STOPPED, JobState.CANCELLED):
        return RESUMABLE
    reported = re.search(r"exit code (\d+)$", status.detail)
    code = int(reported[1]) if reported else record.exit_code()
    return code or ClusterError.exit_code


def _query_backend(group: Sequence[Record], timeout_s: float) -> Answer:
    backend: Any = backends.get(group[0].backend)
    ids = [record.job_id for record in group]
    if isinstance(backend, Service):
        try:
            return Answer(backend.statuses(ids))
        except LauncherError as error:
            return Answer(failure=error)
    remote: dict[str, Status] = {}
    if isinstance(backend, LocalBackend):
        # Processes of other machines are not visible here.
        for record in group:
            if record.host not in ("", socket.gethostname()) and record.exit_code() is None:
                detail = f"started on {record.host}; query it there"
                remote[record.job_id] = Absent(JobState.UNKNOWN, detail)
    local = [job_id for job_id in ids if job_id not in remote]
    cluster = group[0].cluster
    found = Questions(backend, group[0].dialect, cluster, timeout_s).ask(local)
    if found.failure is not None and cluster not in ("", backend.cluster()):
        # Most clusters cannot be reached from another: that is no failure of the command.
        return Answer(found.statuses, unmentioned={*local} - {*found.statuses})
    found.statuses |= remote
    return found


def query_patiently(record: Record) -> Status:
    """Query one job that is followed; UNKNOWN if the server cannot be reached."""
    try:
        return query_one(record)
    except LauncherError as error:
        return Status(JobState.UNKNOWN, in_one_line(error))


def query_reasons(record: Record) -> tuple[str, ...]:
    """Return further reasons from the backend; none if they cannot be queried."""
    backend = backends.get(record.backend)
    with contextlib.suppress(LauncherError):
        if isinstance(backend, Service):
            return backend.why(record.job_id)
        if isinstance(backend, Scheduler):
            argv = backend.why_argv(record.job_id, record.dialect)
            if argv is not None:
                return backend.parse_why(answer(on_cluster(backend, argv, record.cluster)))
    return ()


def cancel(jobs: Sequence[Record]) -> dict[str, Status]:
    """Cancel jobs that have not ended; return the statuses of all, by key, from before.

    Raises ClusterError with the message of the scheduler, or if it has none of the jobs.
    """
    statuses, failures = query(jobs)
    if failures:
        raise failures[0]
    active = [record for record in jobs if not statuses[record.key].state.has_ended]
    here = [record for record in active if not isinstance(statuses[record.key], Absent)]
    if active and not here:
        raise ClusterError(
            f"{active[0].backend}: job {active[0].job_id} not found, nothing was cancelled: "
            f"{statuses[active[0].key].detail}"
        )
    ask_to_end(here)
    return statuses


def ask_to_end(jobs: Sequence[Record]) -> None:
    """Cancel jobs. Raises ClusterError with the message of the scheduler."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in jobs:
        groups.setdefault((record.backend, record.cluster), []).append(record)
    for (name, cluster), group in groups.items():
        backend: Any = backends.get(name)
        ids = [record.job_id for record in group]
        if isinstance(backend, Service):
            for job_id in ids:
                backend.cancel(job_id)
            continue
        try:
            for some in portions(ids):
                answer(on_cluster(backend, backend.cancel_argv(some), cluster))
        except CommandFailed as error:
            # Some may have ended since they were queried.
            if len(ids) == 1 and error.status in backend.already_ended_codes:
                continue
            statuses, _ = query(group)
            if not all(statuses[record.key].state.has_ended for record in group):
                raise
