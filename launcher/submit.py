"""Acting on a job: run it here, hand it to a scheduler or to Beaker, ask about it, cancel it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from worker.errors import printable

from . import backends
from .backends import Here, JobState, Scheduler, Status, Submitted
from .backends._base import state_of_exit
from .command import CommandFailed, answer, find, foreground, replace_text
from .errors import ClusterError, OutputError
from .job import Job
from .records import Record

POLL_S = 1.0
ASK_EVERY_S = 60.0


def run_here(backend: Here[Any], text: str) -> int:
    """The job's exit code."""
    handle, name = tempfile.mkstemp(prefix="merge-launch-", suffix=".sh")
    os.close(handle)
    path = Path(name)
    try:
        replace_text(path, text)
        program, *words = backend.run_argv(name)
        return foreground([find(program), *words])
    finally:
        path.unlink(missing_ok=True)


def submit(backend: Scheduler[Any], job: Job, resources: Any, text: str) -> Record:
    """Write the job's text beside OUT and submit it. ClusterError in the scheduler's own words."""
    script = Path(job.folder) / f"{job.name}.{backend.suffix}"
    argv = backend.submit_argv(str(script))
    find(argv[0])
    try:
        # The schedulers do not make the log's folder: without it the job is lost or held.
        script.parent.mkdir(parents=True, exist_ok=True)
        replace_text(script, text)
    except OSError as error:
        raise OutputError(f"{script}: {error.strerror}; choose another OUT") from None
    reply = answer(argv)
    job_id = backend.parse_submit(reply)
    if job_id is None:
        said = printable(reply.strip())[:200] or "nothing"
        raise ClusterError(f"{argv[0]} gave no job id; it said: {said}")
    return Record(job_id, backend.name, backend.dialect(resources), job.merge.out, job.log)


def to_know(record: Record) -> Submitted:
    ours = "merge-launch"
    return Submitted(
        record.job_id,
        record.log,
        follow=[ours, "logs", "-f", record.job_id],
        cancel=[ours, "cancel", record.job_id],
    )


def scheduler(name: str) -> Scheduler[Any]:
    found = backends.get(name)
    if not isinstance(found, Scheduler):
        raise ClusterError(f"{name}: jobs there are followed with its own tools")
    return found


def status(record: Record) -> Status:
    """In the scheduler's words while it knows the job, else by the exit code that the job left."""
    backend = scheduler(record.backend)
    try:
        reply = answer(backend.status_argv(record.job_id, record.dialect))
        failure = None
    except CommandFailed as error:
        # The found ones are printed even where the status is that of the last unknown one.
        reply, failure = error.output, error
    said = backend.parse_status(reply, record.job_id)
    code = record.exit_code()
    if said is not None and not (said.state.over and code is not None):
        return said
    if code is not None:
        return Status(state_of_exit(code), f"exit code {code}")
    if failure is not None:
        raise failure
    return Status(
        JobState.UNKNOWN, f"{backend.name} does not know the job, and it left no exit code"
    )


def cancel(record: Record) -> None:
    answer(scheduler(record.backend).cancel_argv(record.job_id))


def follow(
    record: Record, target: TextIO, ask: Callable[[Record], Status], poll_s: float = POLL_S
) -> int | None:
    """Copy the log as it grows, until the job is over. Its exit code, None if it left none."""
    log = Path(record.log)
    position = 0
    asked = time.monotonic()
    while True:
        over = record.exit_code() is not None
        if not over and time.monotonic() - asked > ASK_EVERY_S:
            asked = time.monotonic()
            over = ask(record).state.over
        position = copy(log, target, position)
        if over:
            return record.exit_code()
        time.sleep(poll_s)


def copy(log: Path, target: TextIO, position: int = 0) -> int:
    """What the log holds from a position on; the position after it."""
    try:
        with log.open("rb") as file:
            file.seek(position)
            text = file.read()
    except FileNotFoundError:
        return position
    target.write(text.decode(errors="replace"))
    target.flush()
    return position + len(text)
