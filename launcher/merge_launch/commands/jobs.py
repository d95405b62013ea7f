"""The commands for submitted jobs: jobs, status, logs, why, cancel, retry."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable

from merge_worker.command_line.parser import Parser
from merge_worker.messages import printable
from merge_worker.units import ago

from .. import backends, table
from ..backends.base import JobState, Service, Status
from ..errors import ClusterError, LauncherError, in_one_line
from ..submission.submit import resubmit
from ..tracking import conflicts, explain, logs, progress, records
from ..tracking import status as job_status
from ..tracking.records import Record
from .decorators import Run, add_json, emit, say

NEWEST = 20
COLUMNS = ("job", "name", "state", "backend", "submitted", "out")


def complete_job(incomplete: str) -> list[str]:
    """Return the ids and names that begin with a text, for completion in a shell."""
    words = dict.fromkeys(word for job in records.load()[0] for word in (job.job_id, job.name))
    return [word for word in words if word and word.startswith(incomplete)]


def options(parser: Parser, command: str) -> Run:
    """Add the words and options of one of the commands for jobs; return it."""
    if command == "jobs":
        newest = f"not only the newest {NEWEST}"
        parser.add_argument("--all", dest="every", action="store_true", help=newest)
        add_json(parser)
        return lambda arguments: jobs_command(arguments.every, arguments.as_json)
    text = "its id, the beginning of it, its name, or its OUT"
    parser.add_argument("job", metavar="JOB", help=text)
    if command in ("status", "why"):
        add_json(parser)
    if command in ("logs", "retry"):
        parser.add_argument("-f", "--follow", action="store_true", help="until the job ends")
    function: Callable[..., int] = COMMANDS[command]
    return lambda arguments: function(**vars(arguments))


def jobs_command(
    every: bool = False,
    as_json: bool = False,
) -> int:
    """List the jobs submitted from here, newest first."""
    known, faults = records.load()
    for fault in faults:
        say(f"warning: {fault}")
    shown = known if every else known[:NEWEST]
    statuses, failures = job_status.query(shown)
    rows = [row(record, statuses[record.key]) for record in shown]
    table.show(rows, COLUMNS, as_json)
    if not known and not as_json:
        say("nothing was submitted from here yet")
    if len(shown) < len(known) and not as_json:
        say(f"{len(known) - len(shown)} older ones with --all")
    return _told(failures)


def row(record: Record, status: Status) -> dict[str, object]:
    """Return the row of a job in the table, and in JSON."""
    return {
        "job": record.job_id,
        "name": record.name,
        "state": status.state.value,
        "detail": status.detail,
        "exit_code": record.exit_code(),
        "backend": record.backend,
        "cluster": record.cluster,
        "submitted": ago(time.time() - record.submitted_s),
        "submitted_s": record.submitted_s,
        "out": record.out,
        "log": record.log,
        "after": record.after,
    }


def status_command(job: str, as_json: bool = False) -> int:
    """Print the state of a job, or of each job of an array or a sweep."""
    found = records.find_all(job)
    if len(found) == 1:
        statuses = {found[0].key: job_status.query_one(found[0])}
        failures: list[LauncherError] = []
    else:
        statuses, failures = job_status.query(found)
    # The log of a service is fetched: one is enough.
    logged = [
        r for r in found if len(found) == 1 or not isinstance(backends.get(r.backend), Service)
    ]
    reached = {r.key: how_far(r, statuses[r.key]) for r in logged}
    rows = [
        row(record, statuses[record.key]) | {"progress": as_facts(reached.get(record.key))}
        for record in found
    ]
    if as_json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows, indent=1))
    for record in () if as_json else found:
        status = statuses[record.key]
        details = (status.detail, str(reached.get(record.key) or ""))
        detail = printable(", ".join(filter(None, details)))
        detail = f"  ({detail})" if detail else ""
        print(f"{record.job_id}  {status.state.value}{detail}  {printable(record.out)}")
    return _told(failures)


def how_far(record: Record, status: Status) -> progress.Progress | None:
    """Return the progress of a running job; None if it cannot be read."""
    try:
        return progress.progress_of(record, status)
    except LauncherError:  # of a service: the state is known all the same
        return None


def as_facts(reached: progress.Progress | None) -> dict[str, object] | None:
    """Return a progress for JSON."""
    return None if reached is None else reached._asdict()


def _told(failures: list[LauncherError]) -> int:
    """Tell which schedulers did not answer; return the exit code."""
    for failure in failures:
        say(f"{in_one_line(failure)}; showing the last known states")
    return failures[0].exit_code if failures else 0


def logs_command(job: str, follow: bool = False) -> int:
    """Print the log of a job, its progress folded; with -f, end with the job's exit code."""
    record = records.find(job)
    if follow or isinstance(backends.get(record.backend), Service):
        return _print_live_log(record, follow)
    if logs.files(record):
        for line in logs.fold_progress(logs.lines(record), table.wants_color(sys.stdout)):
            print(line)
    else:
        say(f"{record.log}: nothing there yet; 'merge-launch why {record.job_id}' tells why")
    return 0


def _print_live_log(record: Record, follow: bool, position: int = 0) -> int:
    """Print a log as it grows, or as a service returns it. Return the job's exit code if it ended.

    Raises LauncherError if the service cannot tell how the job ended.
    """
    backend = backends.get(record.backend)
    try:
        if isinstance(backend, Service):
            lines = backend.log_lines(record.job_id, follow)
            colored = table.wants_color(sys.stdout)
            for line in lines if follow else logs.fold_progress(lines, colored):
                print(logs.clean(line, colored), flush=follow)
            if not follow:
                return 0
            status = job_status.query_one(record)
        else:
            status = logs.follow(record, sys.stdout, job_status.query_patiently, position)
    except KeyboardInterrupt:
        cancel = shlex.join(["merge-launch", "cancel", record.job_id])
        say(f"the job goes on; to cancel it: {cancel}")
        return 0
    code = job_status.exit_code_of(record, status)
    if code != 0:
        say(f"{record.job_id}  {status.state.value}  ({printable(status.detail)})")
    return code


def why_command(job: str, as_json: bool = False) -> int:
    """Explain why a job waits, or how it ended."""
    record = records.find(job)
    # Jobs that ended are asked about too: the scheduler may know more than the record.
    status = job_status.query_one(record, include_settled=True)
    # What another job with this id waits for is no reason.
    more = () if isinstance(status, job_status.Absent) else job_status.query_reasons(record)
    code = explain.exit_code_of(status, record.exit_code())
    backend = backends.get(record.backend)
    if isinstance(backend, Service):
        log = backend.log_lines(record.job_id, follow=False)
    else:
        log = iter(()) if logs.is_of_earlier_job(record) else logs.lines(record)
    sentences = explain.explain(record.job_id, status, code, more, log)
    reached = how_far(record, status)
    if reached is not None:
        sentences.insert(1, f"Progress: {reached}.")
    if as_json:
        facts = row(record, status) | {"progress": as_facts(reached), "why": sentences}
        print(json.dumps(facts, indent=1))
        return 0
    print(f"{record.job_id}  {status.state.value}  {printable(record.out)}")
    for sentence in sentences:
        print(printable(sentence))
    return 0


def cancel_command(job: str) -> int:
    """Cancel a job, or all jobs of an array or a sweep; finished work is kept."""
    found = records.find_all(job, exact=True)
    open_jobs = [record for record in found if not job_status.is_settled(record)]
    statuses = job_status.cancel([*records.waiting_for(open_jobs), *open_jobs])
    code = 0
    for record in found:
        status = statuses.get(record.key, record.last_status)
        if status.state.has_ended:
            print(f"{record.job_id}  was over already ({status.state.value})")
        elif isinstance(status, job_status.Absent):
            say(f"{record.job_id}: not cancelled: {printable(status.detail)}")
            code = ClusterError.exit_code
        else:
            print(f"{record.job_id}  asked to end; finished work is kept, and 'retry' resumes it")
    return code


def retry_command(job: str, follow: bool = False) -> int:
    """Submit a job once more: it resumes its output."""
    record = records.find(job, exact=True)
    status = job_status.query_one(record)
    if not status.state.has_ended and status.state is not JobState.UNKNOWN:
        say(f"{record.job_id} is {status.state.value}; cancel it first, or wait for its end")
        return 2
    return report_submitted(resubmit(record), follow)


def report_submitted(submitted: list[Record], follow: bool) -> int:
    """Print ids, logs and further commands of submitted jobs; follow the first.

    Returns the exit code of a job that was followed, else 0.
    """
    first = submitted[0]
    word = first.job_id if records.is_kept(first) else first.out
    emit(
        f"job     {first.job_id}",
        f"out     {printable(first.out)}",
        f"log     {printable(first.log)}",
        f"follow  {shlex.join(['merge-launch', 'logs', '-f', word])}",
        f"cancel  {shlex.join(['merge-launch', 'cancel', word])}",
        *(f"then    {job.job_id}  (after it; log {printable(job.log)})" for job in submitted[1:]),
    )
    warn_of_unkept(submitted)
    if conflict := conflicts.warning(submitted):
        say(f"warning: {conflict}")
    return _print_live_log(first, follow, first.log_bytes) if follow else 0


def warn_of_unkept(submitted: list[Record]) -> None:
    """Warn of jobs whose record could not be written; they are submitted already."""
    if warning := records.warning_of_unkept(submitted):
        say(f"warning: {warning}")


COMMANDS: dict[str, Callable[..., int]] = {
    "jobs": jobs_command,
    "status": status_command,
    "logs": logs_command,
    "why": why_command,
    "cancel": cancel_command,
    "retry": retry_command,
}
