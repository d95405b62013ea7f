"""The interface for Python programs: submit merges, and follow them by the records of all commands.

Nothing here prints, ends the process, or reads the environment. A profile is read if it is named.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge_worker.messages import nearest
from merge_worker.recipe import parse

from . import backends
from .backends.base import Backend, JobState, LocalBackend, Service, Status
from .errors import UsageError, refuse
from .job.preflight import with_runs_here
from .job.source import Merge, absolute, current_folder, known_methods, read_sources
from .profiles import precedence
from .profiles.file import ProfileFile
from .settings.groups import JobOptions, MergeOptions, WorkerOptions
from .settings.options import options_of
from .submission.prepare import Request, settle
from .submission.submit import resubmit
from .submission.submit import submit as hand_over
from .tracking import conflicts, explain, logs, records
from .tracking import status as job_status
from .tracking.records import Record

StrPath = str | os.PathLike[str]
POLL_S = 10.0
LOCAL_POLL_S = 0.5
NOT_FROM_PYTHON = {"dry_run", "follow"}


@dataclass(frozen=True)
class Job:
    """A submitted merge, which `merge-launch jobs` lists too.

    `backend` names the scheduler, `out` is the folder of the result, `log` a file or an address.
    `warnings` are those of the submission; `then` is the job of the command that runs after it.
    """

    record: Record = field(repr=False)
    warnings: tuple[str, ...] = ()
    then: Job | None = None

    @property
    def id(self) -> str:
        return self.record.job_id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def backend(self) -> str:
        return self.record.backend

    @property
    def out(self) -> Path:
        return Path(self.record.out)

    @property
    def log(self) -> str:
        return self.record.log

    def status(self) -> Status:
        """Ask the scheduler for the state of the job. Raises ClusterError if it does not answer."""
        return job_status.query_one(self._now())

    def wait(self, timeout_s: float | None = None, poll_s: float | None = None) -> Status:
        """Return the status once the job has ended. Raises TimeoutError after `timeout_s`."""
        is_local = isinstance(backends.get(self.backend), LocalBackend)
        pause_s = poll_s or (LOCAL_POLL_S if is_local else POLL_S)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not (status := job_status.query_patiently(self._now())).state.has_ended:
            left = pause_s if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{self.id}: {status.state.value} after {timeout_s} s")
            time.sleep(min(pause_s, left))
        return status

    def logs(self) -> str:
        """Return the log so far, with one line for each run of progress."""
        backend = backends.get(self.backend)
        if isinstance(backend, Service):
            lines = backend.log_lines(self.id, follow=False)
        else:
            lines = logs.lines(self.record)
        return "".join(f"{line}\n" for line in logs.fold_progress(lines))

    def why(self) -> tuple[str, ...]:
        """Return sentences: why the job waits, or how it ended."""
        record = self._now()
        status = job_status.query_one(record, include_settled=True)
        code = explain.exit_code_of(status, record.exit_code())
        # What another job with this id waits for is no reason.
        more = () if isinstance(status, job_status.Absent) else job_status.query_reasons(record)
        is_older = not isinstance(backends.get(self.backend), Service) and logs.is_of_earlier_job(
            record
        )
        log = [] if is_older else self.logs().splitlines()
        return tuple(explain.explain(self.id, status, code, more, log))

    def cancel(self) -> bool:
        """Cancel the job, and that after it; return False if it was over. Finished work is kept."""
        record = self._now()
        if job_status.is_settled(record):
            return False
        statuses = job_status.cancel([*records.waiting_for([record]), record])
        return not statuses[record.key].state.has_ended

    def retry(self) -> Job:
        """Submit the job once more: it resumes its output. Raises UsageError while it runs."""
        status = self.status()
        if not status.state.has_ended and status.state is not JobState.UNKNOWN:
            raise UsageError(f"{self.id} is {status.state.value}; cancel it first, or wait")
        return _submitted(resubmit(self._now()), ())

    def _now(self) -> Record:
        """Return the record with the last known status, which other commands write too."""
        return records.latest(self.record)


def submit(
    recipe: StrPath | Mapping[str, Any] | Sequence[StrPath],
    out: StrPath,
    backend: str = "slurm",
    *,
    profile: str | None = None,
    **options: Any,
) -> Job:
    """Submit a merge: a recipe as a path or a dict, or the models of a direct merge.

    `options` are those of `merge-launch BACKEND`, with `_` for `-`: `partition="gpu"`,
    `time="4:00:00"`, `setup=["module load cuda"]`, `dtype="bfloat16"`. Relative paths start at the
    current folder. With backend "local" the merge runs in the background of this machine. Raises
    the errors of `merge_launch` and of `merge_worker` with every fault, before anything is
    submitted.
    """
    chosen = backends.get(backend)
    if isinstance(chosen, LocalBackend):
        options["detach"] = True
    merging, job, worker, resources = _settings(chosen, options, profile)
    request = Request(chosen, job, worker, resources)
    merges = [with_runs_here(merge, worker) for merge in _merges(recipe, out, merging, worker)]
    warnings = list(dict.fromkeys(line for merge in merges for line in request.check(merge)))
    return _submitted(hand_over(request, request.jobs(*merges)), warnings)


def jobs() -> list[Job]:
    """Return the jobs submitted from here, by any command, newest first."""
    return [Job(record) for record in records.load()[0]]


def _settings(chosen: Backend[Any], options: dict[str, Any], profile: str | None) -> list[Any]:
    """Return the option groups of a backend from keywords, and a profile if one is named."""
    groups = [MergeOptions, JobOptions, WorkerOptions, chosen.resources]
    known = {option.name for group in groups for option in options_of(group)} - NOT_FROM_PYTHON
    refuse(
        [
            f"unknown option '{name}'{nearest(name, known)}; see merge-launch {chosen.name} --help"
            for name in options
            if name not in known or name == "out"
        ]
    )
    for name in ("methods", "weights", "include", "exclude"):
        if isinstance(options.get(name), list | tuple):
            options[name] = ",".join(str(item) for item in options[name])
    paths = {n: os.fspath(v) for n, v in options.items() if isinstance(v, os.PathLike)}
    origins = [precedence.flags({**options, **paths})]
    if profile is not None:
        origins += precedence.profile(ProfileFile.here(), profile, chosen.name)
    return settle(groups, origins, chosen)[0]


def _merges(
    recipe: StrPath | Mapping[str, Any] | Sequence[StrPath],
    out: StrPath,
    options: MergeOptions,
    worker: WorkerOptions,
) -> tuple[Merge, ...]:
    from merge_worker.api.plans import recipe_text

    folder, target = current_folder({}), os.fspath(out)
    methods = known_methods(worker.methods, {})
    if isinstance(recipe, Mapping):
        text, known = recipe_text(recipe, methods)
        if known is not methods:
            raise UsageError("a job carries merge methods as files; write it to one: methods=FILE")
        parsed = parse(text, "recipe", Path(folder), methods)
        return (Merge(text.encode(), parsed, absolute(target, folder), folder),)
    is_path = isinstance(recipe, str | os.PathLike)
    words = [os.fspath(recipe)] if is_path else [os.fspath(model) for model in recipe]  # type: ignore[arg-type, union-attr]
    given = MergeOptions(**{**vars(options), "out": target})
    return read_sources(words, given, worker.dtype, folder, methods)


def _submitted(submitted: list[Record], warnings: Sequence[str]) -> Job:
    """Return the job, with warnings of its submission."""
    more = [records.warning_of_unkept(submitted), conflicts.warning(submitted)]
    first, *later = submitted
    then = Job(later[0]) if later else None
    return Job(first, (*warnings, *(line for line in more if line)), then)
