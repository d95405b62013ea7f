"""What has become of jobs: one question for all of a scheduler, and the codes that they left."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .. import backends
from ..backends.base import JobState, LocalBackend, Scheduler, Service, Status, state_of_exit
from ..errors import ClusterError, LauncherError, in_one_line
from ..process import TIMEOUT_S, CommandFailed, answer
from . import records
from .records import Record

Key = tuple[str, str]
FORGOTTEN = "the scheduler does not know the job, and it left no exit code"


def key(record: Record) -> Key:
    return record.backend, record.job_id


def query(
    held: Sequence[Record], include_settled: bool = False, timeout_s: float = TIMEOUT_S
) -> tuple[dict[Key, Status], list[LauncherError]]:
    """Of all records, asking each scheduler once; what it failed to say is as it was last heard."""
    found = {key(record): record.last_status for record in held if is_settled(record)}
    failures: list[LauncherError] = []
    groups: dict[Key, list[Record]] = {}
    for record in held:
        if include_settled or not is_settled(record):
            groups.setdefault((record.backend, record.dialect), []).append(record)
    for group in groups.values():
        said, failure = _asked(group, timeout_s)
        if failure is not None:
            failures.append(failure)
        for each in group:
            if failure is None or each.job_id in said:
                found[key(each)] = verdict(each, said.get(each.job_id))
            else:
                found[key(each)] = status_from_exit_code(each) or each.last_status
    for record in held:
        now = found[key(record)]
        if (now.state, now.detail) != (record.last_status.state, record.last_status.detail):
            with contextlib.suppress(OSError):
                records.save(record.with_status(now))
    return found, failures


def is_settled(record: Record) -> bool:
    """No scheduler starts these again by itself."""
    return record.last_status.state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def query_one(record: Record, include_settled: bool = False) -> Status:
    """In the scheduler's words while it knows the job, else by the exit code that the job left."""
    found, failures = query([record], include_settled)
    if failures and status_from_exit_code(record) is None and not is_settled(record):
        raise failures[0]
    return found[key(record)]


def status_from_exit_code(record: Record) -> Status | None:
    code = record.exit_code()
    return None if code is None else Status(state_of_exit(code), f"exit code {code}")


def verdict(record: Record, said: Status | None) -> Status:
    """The job's own code tells more than a scheduler's end, unless that is the user's doing."""
    left = status_from_exit_code(record)
    if said is not None and (left is None or not said.state.has_ended):
        return said
    if said is not None and said.state is JobState.CANCELLED:
        return said
    if left is not None:
        return left if said is None else dataclasses.replace(left, reasons=said.reasons)
    if is_settled(record):
        return record.last_status
    backend = backends.get(record.backend)
    if isinstance(backend, Scheduler) and backend.status_if_forgotten.detail:
        return backend.status_if_forgotten
    return Status(JobState.UNKNOWN, FORGOTTEN)


def _asked(
    group: Sequence[Record], timeout_s: float
) -> tuple[dict[str, Status], LauncherError | None]:
    backend: Any = backends.get(group[0].backend)
    ids = [record.job_id for record in group]
    if isinstance(backend, Service):
        try:
            return backend.statuses(ids), None
        except LauncherError as error:
            return {}, error
    far: dict[str, Status] = {}
    if isinstance(backend, LocalBackend):
        # Processes of another machine cannot be seen from here.
        for each in group:
            if each.host not in ("", records.this_host()) and each.exit_code() is None:
                detail = f"ask on {each.host}, where it was started"
                far[each.job_id] = Status(JobState.UNKNOWN, detail)
    near = [each for each in ids if each not in far]
    found, failure = _from_sources(backend, near, group[0].dialect, timeout_s)
    return far | found, failure


def _from_sources(
    backend: Scheduler[Any], ids: Sequence[str], dialect: str, timeout_s: float
) -> tuple[dict[str, Status], LauncherError | None]:
    found: dict[str, Status] = {}
    failure: LauncherError | None = None
    forms = list(backend.formats)
    for source in backend.sources:
        left = [each for each in ids if each not in found]
        # What kept silent would do so again.
        if not left or (isinstance(failure, ClusterError) and failure.unanswered):
            break
        said, failed = _from_source(backend, source, forms, Question(left, dialect, timeout_s))
        failure = failure or failed
        found |= {each: said[each] for each in left if each in said}
    return found, failure if len(found) < len(ids) else None


class Question(NamedTuple):
    ids: Sequence[str]
    dialect: str
    timeout_s: float


def _from_source(
    backend: Scheduler[Any], source: str, forms: list[str], question: Question
) -> tuple[dict[str, Status], LauncherError | None]:
    """Forms that turn out to be of no use are taken from the list, for the sources to come too."""
    words = f"{source} {forms[0]}".strip()
    argv = backend.status_argv(words, question.ids, question.dialect)
    if argv is None:
        return {}, None
    text, failure = _reply(argv, question.timeout_s)
    formless = failure is not None and re.search(backend.unsupported_format_pattern, str(failure))
    said = None if formless else backend.parse_status(source, text)
    if said is None and len(forms) > 1:
        del forms[0]
        return _from_source(backend, source, forms, question)
    if failure is not None and re.search(backend.unknown_job_pattern, str(failure)):
        failure = None
    return said or {}, failure


def _reply(argv: Sequence[str], timeout_s: float) -> tuple[str, LauncherError | None]:
    """The found jobs are printed even where the status is that of the last unknown one."""
    try:
        return answer(argv, timeout_s), None
    except CommandFailed as error:
        return error.output, error
    except ClusterError as error:
        return "", error


def patient_query() -> Callable[[Record], Status]:
    """For following: a server that is away for a while is no end of the job."""

    def ask_again(record: Record) -> Status:
        try:
            return query_one(record)
        except LauncherError as error:
            return Status(JobState.UNKNOWN, in_one_line(error))

    return ask_again


def query_reasons(record: Record) -> tuple[str, ...]:
    """What else is to be had; not having it is no fault."""
    backend = backends.get(record.backend)
    with contextlib.suppress(LauncherError):
        if isinstance(backend, Service):
            return backend.why(record.job_id)
        if isinstance(backend, Scheduler):
            argv = backend.why_argv(record.job_id, record.dialect)
            return () if argv is None else backend.parse_why(answer(argv))
    return ()


def cancel(record: Record) -> bool:
    """False if it was over already. ClusterError in the scheduler's own words."""
    backend = backends.get(record.backend)
    if isinstance(backend, Service):
        backend.cancel(record.job_id)
        return True
    if not isinstance(backend, Scheduler):
        raise TypeError(f"nothing knows how to cancel on a {type(backend).__name__}")
    try:
        answer(backend.cancel_argv(record.job_id))
    except CommandFailed as error:
        if error.status not in backend.already_ended_codes and not _over(record):
            raise
        return False
    return True


def _over(record: Record) -> bool:
    with contextlib.suppress(LauncherError):
        return query_one(record).state.has_ended
    return False
