"""Handing jobs over: run one here, submit it to a scheduler or a service, submit it again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from merge_worker.messages import printable

from .. import backends
from ..backends import base
from ..backends.base import LocalBackend, Scheduler, Service
from ..errors import ClusterError, LauncherError, OutputError
from ..job.job import Job
from ..process import CommandFailed, answer, find, foreground
from ..tracking import records
from ..tracking.records import Record

NOTHING: Mapping[str, Any] = MappingProxyType({})


def _write(path: Path, text: str) -> None:
    """Write the text of a job. File names in it need not be UTF-8; their bytes stay as they are."""
    from merge_worker.output.files import write_file

    write_file(path, text.encode(errors="surrogateescape"))


def run_here(backend: LocalBackend[Any], text: str, notify: str | None = None) -> int:
    """The job's exit code."""
    handle, name = tempfile.mkstemp(prefix="merge-launch-", suffix=".sh")
    os.close(handle)
    path = Path(name)
    try:
        _write(path, text)
        program, *words = backend.run_argv(name)
        secrets = {} if notify is None else {"MERGE_LAUNCH_NOTIFY": notify}
        return foreground([find(program), *words], secrets)
    finally:
        path.unlink(missing_ok=True)


def run_here_logged(backend: LocalBackend[Any], job: Job, text: str) -> int:
    """As `run_here`, with all that is printed in the job's log too."""
    script = Path(job.folder) / f"{job.name}.{backend.suffix}"
    with written_text(script, text):
        program, *words = backend.run_argv(str(script))
        # An interrupt is for the job, not for what keeps its words.
        tee = '"${@:2}" 2>&1 | tee -ai "$1"; exit "${PIPESTATUS[0]}"'
        argv = [find("bash"), "-c", tee, "bash", job.log, find(program), *words]
        notify = job.options.notify
        return foreground(argv, {} if notify is None else {"MERGE_LAUNCH_NOTIFY": notify})


def submit(
    backend: Scheduler[Any], parts: Sequence[tuple[Job, str]], resources: Any
) -> list[Record]:
    """Write the texts of a merge beside OUT and submit each to wait for the one before.

    All are submitted or none. ClusterError in the scheduler's own words.
    """
    done: list[Record] = []
    for job, text in parts:
        record = unsent(backend, job, resources)
        record = dataclasses.replace(record, after=done[-1].job_id if done else "")
        try:
            with written(record, job, text):
                done.append(hand_over(backend, record))
        except LauncherError:
            for before in done:
                with contextlib.suppress(LauncherError):
                    answer(backend.cancel_argv(before.job_id))
            raise
    return done


def unsent(backend: Scheduler[Any], job: Job, resources: Any) -> Record:
    """What is known of a job before it has an id."""
    return Record(
        job_id="",
        backend=backend.name,
        dialect=backend.dialect(resources),
        out=job.merge.out,
        log=job.log,
        name=job.name,
        script=str(Path(job.folder) / f"{job.name}.{backend.suffix}"),
    )


def written(record: Record, job: Job, text: str) -> Any:
    notify = job.options.notify
    return written_text(Path(record.script), text, {job.notify_file: notify} if notify else {})


@contextlib.contextmanager
def written_text(script: Path, text: str, secrets: Mapping[str, str] = NOTHING) -> Any:
    """The files of a job; taken back if the scheduler refuses it."""
    before = script.read_bytes() if script.is_file() else None
    made = [folder for folder in script.parents if not folder.exists()]
    files = [script, *(Path(name) for name in secrets)]
    try:
        # The schedulers do not make the log's folder: without it the job is lost or held.
        script.parent.mkdir(parents=True, exist_ok=True)
        _write(script, text)
        for name, value in secrets.items():
            Path(name).touch(mode=0o600)
            Path(name).chmod(0o600)
            Path(name).write_text(value + "\n")
    except OSError as error:
        raise OutputError(f"{script}: {error.strerror}; choose another OUT") from None
    try:
        yield
    except Refused:
        with contextlib.suppress(OSError):
            for file in files:
                file.unlink(missing_ok=True)
            if before is not None:
                script.write_bytes(before)
            for folder in made:
                folder.rmdir()
        raise


class Refused(ClusterError):
    """The scheduler took nothing."""


def hand_over(backend: Scheduler[Any], record: Record, words: Sequence[str] = ()) -> Record:
    """Submit the script of a record; the record with its id. ClusterError; Refused.

    `words` go before the script.
    """
    *program, script = backend.submit_argv(record.script, record.after or None)
    argv = [*program, *words, script]
    try:
        find(argv[0])
        reply = answer(argv)
    except CommandFailed as error:
        raise Refused(str(error)) from None
    except ClusterError as error:
        if error.unanswered:
            raise ClusterError(f"{error}; the job may have been taken all the same") from None
        raise Refused(str(error)) from None
    job_id = backend.parse_submit(reply)
    if job_id is None:
        said = printable(reply.strip())[:200] or "nothing"
        raise Refused(f"{argv[0]} gave no job id; it said: {said}")
    return named(record, job_id)


def named(record: Record, job_id: str) -> Record:
    return dataclasses.replace(
        record, job_id=job_id, host=records.this_host(), submitted_s=time.time()
    )


def submit_to_service(backend: Service[Any], job: Job, text: str, resources: Any) -> Record:
    ticket = backend.ticket(job, resources)
    record = Record("", backend.name, "", job.merge.out, "", job.name, ticket=ticket)
    return hand_to_service(backend, record, text)


def hand_to_service(backend: Service[Any], record: Record, text: str) -> Record:
    """Submit a text; the record with its id. The text is kept, for `again`."""
    given = backend.submit(text, record.ticket)
    made = named(dataclasses.replace(record, log=given.log), given.job_id)
    path = records.file_of(made, ".txt")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text)
        made = dataclasses.replace(made, script=str(path))
    return made


def again(record: Record) -> list[Record]:
    """Submit the very text of a job once more, and of the jobs that waited for it."""
    backend = backends.get(record.backend)
    try:
        text = Path(record.script).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OutputError(
            f"{record.script or record.job_id}: {error.strerror}; submit the merge anew"
        ) from None
    fresh = dataclasses.replace(record, after="").heard(base.Status(base.JobState.UNKNOWN))
    if isinstance(backend, Service):
        return [hand_to_service(backend, fresh, text)]
    if not isinstance(backend, Scheduler):
        raise TypeError(f"nothing knows how to submit to a {type(backend).__name__}")
    Path(record.script).parent.mkdir(parents=True, exist_ok=True)
    done = [hand_over(backend, fresh)]
    for later in records.waiting_for(record):
        after = dataclasses.replace(later, after=done[0].job_id)
        done.append(hand_over(backend, after))
    return done
