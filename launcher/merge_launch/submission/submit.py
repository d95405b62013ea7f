"""Hand jobs over: run one here, submit them to a scheduler or a service, submit one again."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from merge_worker.messages import HERE, printable
from merge_worker.output.files import write_file

from .. import backends
from ..backends.base import JobState, LocalBackend, Scheduler, Service, Status
from ..errors import ClusterError, LauncherError, OutputError
from ..job.job import Job
from ..process import CommandFailed, answer, find, foreground
from ..tracking import records
from ..tracking import status as job_status
from ..tracking.logs import size_of
from ..tracking.records import Record
from .prepare import JobChain, Request


class Refused(ClusterError):
    """The scheduler's refusal: nothing was submitted."""


def run_here(request: Request, job: Job) -> int:
    """Run a job in this terminal, from a temporary file. Returns its exit code."""
    text = _bytes(request.render(job))
    with tempfile.TemporaryDirectory(prefix="merge-launch-") as folder:
        script = Path(folder) / "job.sh"
        try:
            script.write_bytes(text)
        except OSError as error:
            place = Path(folder).parent
            raise OutputError(f"{place}: {error.strerror}; set TMPDIR to another folder") from None
        return _run(request, job, script, shown_from=job.merge.folder)


def run_here_logged(request: Request, job: Job) -> int:
    """Run a job in this terminal and copy its output to its log. Returns its exit code."""
    script = Path(unsubmitted(request, job).script)
    with job_files(script, request.render(job)):
        # An interrupt is for the job, not for tee, which copies its last output.
        tee = '"${@:2}" 2>&1 | tee -ai "$1"; exit "${PIPESTATUS[0]}"'
        return _run(request, job, script, [find("bash"), "-c", tee, "bash", job.log])


def _run(
    request: Request, job: Job, script: Path, wrapper: Sequence[str] = (), shown_from: str = ""
) -> int:
    backend = request.backend
    if not isinstance(backend, LocalBackend):
        raise TypeError(f"{backend.name} does not run on this machine")
    program, *words = backend.run_argv(str(script))
    given = {"MERGE_LAUNCH_NOTIFY": job.options.notify, HERE: shown_from or None}
    variables = {name: value for name, value in given.items() if value is not None}
    return foreground([*wrapper, find(program), *words], variables)


def submit(request: Request, jobs: JobChain) -> list[Record]:
    """Submit the jobs of a merge, each to wait for the one before: all of them or none.

    Raises ClusterError in the scheduler's own words.
    """
    backend = request.backend
    texts = [request.render(job) for job in jobs]
    if isinstance(backend, Service):
        job = jobs[0]
        ticket = backend.submission_metadata(job, request.resources)
        record = Record("", backend.name, "", job.merge.out, "", job.name, ticket=ticket)
        record = dataclasses.replace(record, also=outs_after_first(job))
        return [_submit_to_service(backend, record, texts[0])]
    submitted: list[Record] = []
    for job, text in zip(jobs, texts, strict=True):
        try:
            submitted.append(submit_job(request, job, text, submitted[-1:]))
        except LauncherError:
            with contextlib.suppress(LauncherError):
                job_status.ask_to_end(submitted)
            raise
    return submitted


def submit_job(request: Request, job: Job, text: str, after: Sequence[Record] = ()) -> Record:
    """Write the files of one job and submit it, to wait for the job in `after`, if any."""
    record = unsubmitted(request, job, after)
    with job_files(Path(record.script), text, job):
        return records.keep(submit_script(scheduler_of(request), record))


def outs_after_first(job: Job) -> tuple[str, ...]:
    """Return the OUTs of the further merges of a job."""
    return tuple(merge.out for merge in job.further)


def scheduler_of(request: Request) -> Scheduler[Any]:
    """Return the backend as a scheduler. Raises TypeError if it is not one."""
    if not isinstance(request.backend, Scheduler):
        raise TypeError(f"{request.backend.name} is not a scheduler")
    return request.backend


def unsubmitted(request: Request, job: Job, after: Sequence[Record] = ()) -> Record:
    """Return the record of a job that has no id yet, and waits for the job in `after`, if any."""
    backend = scheduler_of(request)
    return Record(
        job_id="",
        backend=backend.name,
        dialect=backend.dialect(request.resources),
        out=job.merge.out,
        log=job.log,
        name=job.name,
        script=str(Path(job.folder) / f"{job.name}.{backend.suffix}"),
        after=after[0].job_id if after else "",
        log_bytes=size_of(job.log),
        also=outs_after_first(job),
        proof=job.proof,
    )


@contextlib.contextmanager
def job_files(script: Path, text: str | bytes, job: Job | None = None) -> Iterator[None]:
    """Write a script and the notify address of `job`; undo this if the scheduler refuses it.

    The folder is made here: schedulers lose or hold a job whose log has no folder.
    """
    before = script.read_bytes() if script.is_file() else None
    new_folders = [folder for folder in script.parents if not folder.exists()]
    files = [script]
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_file(script, text if isinstance(text, bytes) else _bytes(text))
        if job is not None and job.options.notify is not None:
            files.append(Path(job.notify_file))
            files[-1].touch(mode=0o600)
            files[-1].chmod(0o600)
            files[-1].write_text(job.options.notify + "\n")
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
            for folder in new_folders:
                folder.rmdir()
        raise


def _bytes(text: str) -> bytes:
    """Encode the text of a job; file names in it that are not UTF-8 keep their bytes."""
    return text.encode(errors="surrogateescape")


def submit_script(backend: Scheduler[Any], record: Record, words: Sequence[str] = ()) -> Record:
    """Submit the script of a record, with `words` before it. Returns the record with its id.

    A job whose id got lost is looked up by its name. Raises Refused if nothing was submitted,
    ClusterError if that is unknown.
    """
    *program, script = backend.submit_argv(record.script, record.after or None)
    argv = [*program, *words, script]
    try:
        reply = answer(argv)
        job_id = backend.parse_submit(reply)
        reason = f"{argv[0]}: expected a job id, got: {printable(reply.strip())[:200] or 'nothing'}"
    except ClusterError as error:
        # A wrapper may fail after it has printed the id.
        output = error.output if isinstance(error, CommandFailed) else ""
        taken = error.unanswered or backend.parse_submit(output) is not None
        if not taken and not re.search(backend.lost_answer_pattern, str(error)):
            raise Refused(str(error)) from None
        job_id, reply, reason = None, "", str(error)
    if job_id is None and (job_id := _search(backend, record)) is None:
        folder = printable(str(Path(record.script).parent))
        lost = ClusterError(
            f"{reason}\n  the job may have been taken: look for '{record.name}' in the queue "
            f"before submitting it again; its files are kept in {folder}"
        )
        lost.unanswered = True
        raise lost
    cluster = backend.parse_cluster(reply) or backend.cluster()
    return with_id(dataclasses.replace(record, cluster=cluster, user=backend.user()), job_id)


def _search(backend: Scheduler[Any], record: Record) -> str | None:
    """Return the id of the only job of this name in the queue that has no record yet, or None."""
    argv = backend.search_argv(record.job_name or record.name)
    with contextlib.suppress(ClusterError):
        reply = "" if argv is None else answer(argv)
        known = {job.job_id for job in records.load()[0] if job.backend == backend.name}
        known |= set(map(backend.array_of, known))
        found = set(backend.parse_search(reply, record.script)) - known
        return found.pop() if len(found) == 1 else None
    return None


def with_id(record: Record, job_id: str) -> Record:
    """Return the record of a job that was submitted just now, from this host."""
    return dataclasses.replace(
        record, job_id=job_id, host=socket.gethostname(), submitted_s=time.time()
    )


def _submit_to_service(backend: Service[Any], record: Record, text: str) -> Record:
    """Submit a text and keep it, so that it can be submitted again."""
    reply = backend.submit(text, record.ticket)
    record = with_id(dataclasses.replace(record, log=reply.log), reply.job_id)
    path = records.path_of(record, ".txt")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, _bytes(text))
        record = dataclasses.replace(record, script=str(path))
    return records.keep(record)


def resubmit(record: Record) -> list[Record]:
    """Submit the text of a job again, unchanged, and those of the jobs that waited for it."""
    backend = backends.get(record.backend)
    try:
        text = records.read_own(Path(record.script))
    except OSError as error:
        raise OutputError(
            f"{record.script or record.job_id}: {error.strerror}; submit the merge anew"
        ) from None
    # A member of an array is submitted alone, with a name of its own.
    first = dataclasses.replace(record, after="", job_name="").with_status(Status(JobState.UNKNOWN))
    if isinstance(backend, Service):
        return [_submit_to_service(backend, first, text)]
    if not isinstance(backend, Scheduler):
        raise TypeError(f"cannot submit to a {type(backend).__name__}")
    Path(record.script).parent.mkdir(parents=True, exist_ok=True)
    again = dataclasses.replace(first, log_bytes=size_of(first.log))
    submitted = [records.keep(submit_script(backend, again))]
    for later in records.waiting_for([record]):
        after = dataclasses.replace(
            later, after=submitted[0].job_id, log_bytes=size_of(later.log), job_name=""
        )
        submitted.append(records.keep(submit_script(backend, after)))
    return submitted
