"""The commands that follow a job up: jobs, status, logs, why, cancel, retry."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from typing import Annotated, Any

import typer

from merge_worker.messages import printable
from merge_worker.units import ago

from .. import backends
from ..backends import base
from ..backends.base import Scheduler, Service, Status
from ..errors import ClusterError, in_one_line
from ..tracking.records import Record
from .wiring import Command, say

SHOWN = 20
COLUMNS = ("job", "name", "state", "backend", "submitted", "out")


def complete_job(incomplete: str) -> list[str]:
    """For the shell: ids and names that begin so."""
    from ..tracking import records

    held, _ = records.load()
    words = dict.fromkeys(word for each in held for word in (each.job_id, each.name) if word)
    return [word for word in words if word.startswith(incomplete)]


JobWord = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="id, beginning of it, name or OUT", autocompletion=complete_job
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def jobs_command(
    every: Annotated[bool, typer.Option("--all", help=f"not the newest {SHOWN} only")] = False,
    as_json: AsJson = False,
) -> int:
    """List what was submitted from here, newest first."""
    from .. import table
    from ..tracking import records
    from ..tracking import status as job_status

    held, faults = records.load()
    for fault in faults:
        say(f"warning: {fault}")
    shown = held if every else held[:SHOWN]
    found, failures = job_status.statuses(shown)
    rows = [row(each, found[job_status.key(each)]) for each in shown]
    table.show(rows, COLUMNS, as_json)
    if not held and not as_json:
        say("nothing was submitted from here yet")
    if len(shown) < len(held) and not as_json:
        say(f"{len(held) - len(shown)} older ones with --all")
    for failure in failures:
        say(f"{in_one_line(failure)}; states are as they were last seen")
    return failures[0].exit_code if failures else 0


def row(record: Record, status: Status) -> dict[str, object]:
    return {
        "job": record.job_id,
        "name": record.name,
        "state": status.state.value,
        "detail": status.detail,
        "exit_code": record.exit_code(),
        "backend": record.backend,
        "submitted": ago(time.time() - record.submitted_s),
        "submitted_s": record.submitted_s,
        "out": record.out,
        "log": record.log,
        "after": record.after,
    }


def status_command(job: JobWord, as_json: AsJson = False) -> int:
    """Say what has become of a job."""
    from ..tracking import records
    from ..tracking import status as job_status

    record = records.find(job)
    found = job_status.status(record)
    if as_json:
        print(json.dumps(row(record, found), indent=1))
        return 0
    detail = f"  ({printable(found.detail)})" if found.detail else ""
    print(f"{record.job_id}  {found.state.value}{detail}  {printable(record.out)}")
    return 0


def logs_command(
    job: JobWord,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="until the job ends")] = False,
) -> int:
    """Print the log of a job, its progress folded."""
    from ..tracking import logs, records

    record = records.find(job)
    backend = backends.get(record.backend)
    if isinstance(backend, Service):
        from_service(backend, record, follow)
    elif follow:
        followed(record)
    elif not logs.show(record, sys.stdout):
        say(f"{record.log}: nothing there yet; 'merge-launch why {record.job_id}' tells why")
    return 0


def from_service(backend: Service[Any], record: Record, follow: bool) -> None:
    from ..tracking import logs

    lines = backend.log_lines(record.job_id, follow)
    colours = logs.coloured(sys.stdout)
    with leaving_alone(record):
        for line in lines if follow else logs.folded(lines, colours):
            print(logs.clean(line, colours), flush=follow)


def followed(record: Record, position: int = 0) -> int | None:
    """The job's exit code; None if it left none, or goes on."""
    from ..tracking import logs
    from ..tracking import status as job_status

    with leaving_alone(record):
        return logs.follow(record, sys.stdout, job_status.patient(), position)
    return None


@contextlib.contextmanager
def leaving_alone(record: Record) -> Any:
    """An interrupt ends the following, not the job."""
    try:
        yield
    except KeyboardInterrupt:
        cancel = shlex.join(["merge-launch", "cancel", record.job_id])
        say(f"the job goes on; to cancel it: {cancel}")


def why_command(job: JobWord, as_json: AsJson = False) -> int:
    """Say in plain words why a job waits, or how it ended."""
    from ..tracking import explain, logs, records
    from ..tracking import status as job_status

    record = records.find(job)
    # Also of a job that is over: the scheduler may still know more than was kept.
    status = job_status.status(record, settled_too=True)
    more, code = job_status.reasons(record), explain.code_in(status, record.exit_code())
    backend = backends.get(record.backend)
    if isinstance(backend, Service):
        log = backend.log_lines(record.job_id, follow=False)
    else:
        log = iter(()) if logs.of_another(record) else logs.lines(record)
    found = explain.explain(record.job_id, status, code, more, log)
    if as_json:
        print(json.dumps({**row(record, status), "why": found}, indent=1))
        return 0
    print(f"{record.job_id}  {status.state.value}  {printable(record.out)}")
    for sentence in found:
        print(printable(sentence))
    return 0


def cancel_command(job: JobWord) -> int:
    """Cancel a job; what is merged so far stays."""
    from ..tracking import records
    from ..tracking import status as job_status

    record = records.find(job)
    if job_status.settled(record):
        print(f"{record.job_id}  was over already ({record.last.state.value})")
        return 0
    for later in records.waiting_for(record):
        with contextlib.suppress(ClusterError):
            job_status.cancel(later)
    if not job_status.cancel(record):
        print(f"{record.job_id}  was over already")
        return 0
    print(
        f"{record.job_id}  asked to end; what is merged so far stays, and 'retry' goes on from it"
    )
    return 0


def retry_command(
    job: JobWord,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="until the job ends")] = False,
) -> int:
    """Submit a job once more: it resumes its output."""
    from ..submission import submit
    from ..tracking import records
    from ..tracking import status as job_status

    record = records.find(job)
    status = job_status.status(record)
    if not status.state.over and status.state is not base.JobState.UNKNOWN:
        say(f"{record.job_id} is {status.state.value}; cancel it first, or wait for its end")
        return 2
    fresh = submit.again(record)
    return report_submitted(fresh, follow)


def report_submitted(fresh: list[Record], follow: bool) -> int:
    """Print what a user needs to know of jobs on their way; note them; follow the first."""
    from ..tracking import conflicts, logs

    first = fresh[0]
    ours = "merge-launch"
    print(f"job     {first.job_id}")
    print(f"out     {printable(first.out)}")
    print(f"log     {printable(first.log)}")
    print(f"follow  {shlex.join([ours, 'logs', '-f', first.job_id])}")
    print(f"cancel  {shlex.join([ours, 'cancel', first.job_id])}", flush=True)
    for later in fresh[1:]:
        print(f"then    {later.job_id}  (after it; log {printable(later.log)})", flush=True)
    position = logs.size(first)
    keep(fresh)
    if beside := conflicts.warning(fresh):
        say(f"warning: {beside}")
    if not follow:
        return 0
    backend = backends.get(first.backend)
    if isinstance(backend, Scheduler):
        return followed(first, position) or 0
    if isinstance(backend, Service):
        from_service(backend, first, follow=True)
    return 0


def keep(fresh: list[Record]) -> None:
    """A job that is on its way is not undone by a full home folder."""
    from ..tracking import records

    try:
        for record in fresh:
            records.keep(record)
            records.keep_beside(record)
    except OSError as error:
        say(
            f"warning: cannot note the job in {records.folder()} ({error.strerror}): 'logs', "
            f"'status' and 'cancel' will know it by OUT only"
        )


COMMANDS: dict[str, Command] = {
    "jobs": jobs_command,
    "status": status_command,
    "logs": logs_command,
    "why": why_command,
    "cancel": cancel_command,
    "retry": retry_command,
}
