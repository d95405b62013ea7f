"""States of jobs: one scheduler call for all jobs, then the exit codes that jobs left."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
from collections.abc import Sequence
from typing import Any

from .. import backends
from ..backends.base import JobState, LocalBackend, Scheduler, Service, Status, state_of_exit
from ..errors import ClusterError, LauncherError, in_one_line
from ..process import TIMEOUT_S, CommandFailed, answer
from . import records
from .records import Record

Key = tuple[str, str]
FORGOTTEN = "unknown to the scheduler, and no exit code"


def key(record: Record) -> Key:
    """Return the backend and id, which identify a job."""
    return record.backend, record.job_id


def query(
    jobs: Sequence[Record], include_settled: bool = False, timeout_s: float = TIMEOUT_S
) -> tuple[dict[Key, Status], list[LauncherError]]:
    """Query job states: one scheduler call for all jobs, then exit codes for those it forgot.

    Jobs of a failed call keep their exit code or last recorded status. Changes are recorded.
    """
    statuses = {key(record): record.last_status for record in jobs if is_settled(record)}
    failures: list[LauncherError] = []
    groups: dict[Key, list[Record]] = {}
    for record in jobs:
        if include_settled or not is_settled(record):
            groups.setdefault((record.backend, record.dialect), []).append(record)
    for group in groups.values():
        reported, failure = _query_backend(group, timeout_s)
        if failure is not None:
            failures.append(failure)
        for record in group:
            if failure is None or record.job_id in reported:
                statuses[key(record)] = final_status(record, reported.get(record.job_id))
            else:
                statuses[key(record)] = status_from_exit_code(record) or record.last_status
    for record in jobs:
        now = statuses[key(record)]
        if (now.state, now.detail) != (record.last_status.state, record.last_status.detail):
            with contextlib.suppress(OSError):
                records.save(record.with_status(now))
    return statuses, failures


def is_settled(record: Record) -> bool:
    """Return whether the last status is final: no scheduler restarts such a job by itself."""
    return record.last_status.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def query_one(record: Record, include_settled: bool = False) -> Status:
    """Query one job. Raises LauncherError if neither the scheduler nor an exit code is there."""
    statuses, failures = query([record], include_settled)
    if failures and status_from_exit_code(record) is None and not is_settled(record):
        raise failures[0]
    return statuses[key(record)]


def status_from_exit_code(record: Record) -> Status | None:
    """Return the status for the exit code that a job left, or None."""
    code = record.exit_code()
    return None if code is None else Status(state_of_exit(code), f"exit code {code}")


def final_status(record: Record, reported: Status | None) -> Status:
    """Combine report and exit code; the exit code is more exact, except after a cancellation."""
    by_code = status_from_exit_code(record)
    if by_code is not None and reported is not None:
        is_final = reported.state.has_ended and reported.state is not JobState.CANCELLED
        return dataclasses.replace(by_code, reasons=reported.reasons) if is_final else reported
    if known := reported or by_code:
        return known
    if is_settled(record):
        return record.last_status
    backend = backends.get(record.backend)
    if isinstance(backend, Scheduler) and backend.status_if_forgotten.detail:
        return backend.status_if_forgotten
    return Status(JobState.UNKNOWN, FORGOTTEN)


def _query_backend(
    group: Sequence[Record], timeout_s: float
) -> tuple[dict[str, Status], LauncherError | None]:
    backend: Any = backends.get(group[0].backend)
    ids = [record.job_id for record in group]
    if isinstance(backend, Service):
        try:
            return backend.statuses(ids), None
        except LauncherError as error:
            return {}, error
    remote: dict[str, Status] = {}
    if isinstance(backend, LocalBackend):
        # Processes of other machines are not visible here.
        for record in group:
            if record.host not in ("", socket.gethostname()) and record.exit_code() is None:
                detail = f"started on {record.host}; query it there"
                remote[record.job_id] = Status(JobState.UNKNOWN, detail)
    local = [job_id for job_id in ids if job_id not in remote]
    statuses, failure = _from_sources(backend, local, group[0].dialect, timeout_s)
    return remote | statuses, failure


def _from_sources(
    backend: Scheduler[Any], ids: Sequence[str], dialect: str, timeout_s: float
) -> tuple[dict[str, Status], LauncherError | None]:
    statuses: dict[str, Status] = {}
    failure: LauncherError | None = None
    formats = list(backend.formats)
    for source in backend.sources:
        missing = [job_id for job_id in ids if job_id not in statuses]
        # A scheduler that did not answer would not answer the next call either.
        if not missing or (isinstance(failure, ClusterError) and failure.unanswered):
            break
        reported, failed = _from_source(backend, source, formats, missing, dialect, timeout_s)
        failure = failure or failed
        statuses |= {job_id: reported[job_id] for job_id in missing if job_id in reported}
    return statuses, failure if len(statuses) < len(ids) else None


def _from_source(
    backend: Scheduler[Any],
    source: str,
    formats: list[str],
    ids: Sequence[str],
    dialect: str,
    timeout_s: float,
) -> tuple[dict[str, Status], LauncherError | None]:
    """Query one source; unusable formats are removed from the list, also for later sources."""
    argv = backend.status_argv(f"{source} {formats[0]}".strip(), ids, dialect)
    if argv is None:
        return {}, None
    failure: LauncherError | None = None
    try:
        text = answer(argv, timeout_s)
    except ClusterError as error:
        # Known jobs are printed even if the exit status is that of an unknown one.
        text = error.output if isinstance(error, CommandFailed) else ""
        failure = error
    message = "" if failure is None else str(failure)
    supported = not re.search(backend.unsupported_format_pattern, message)
    statuses = backend.parse_status(source, text) if supported else None
    if statuses is None and len(formats) > 1:
        del formats[0]
        return _from_source(backend, source, formats, ids, dialect, timeout_s)
    known_failure = re.search(backend.unknown_job_pattern, message)
    return statuses or {}, None if known_failure else failure


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
            return () if argv is None else backend.parse_why(answer(argv))
    return ()


def cancel(record: Record) -> bool:
    """Cancel a job; return False if it had already ended.

    Raises ClusterError with the message of the scheduler.
    """
    backend = backends.get(record.backend)
    if isinstance(backend, Service):
        backend.cancel(record.job_id)
        return True
    if not isinstance(backend, Scheduler):
        raise TypeError(f"cannot cancel on a {type(backend).__name__}")
    try:
        answer(backend.cancel_argv(record.job_id))
    except CommandFailed as error:
        if error.status not in backend.already_ended_codes and not _has_ended(record):
            raise
        return False
    return True


def _has_ended(record: Record) -> bool:
    with contextlib.suppress(LauncherError):
        return query_one(record).state.has_ended
    return False
