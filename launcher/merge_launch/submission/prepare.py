"""Options as given → a request; merges → checked jobs → their texts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from merge_worker.errors import WorkerError

from ..backends.base import Backend, LocalBackend
from ..errors import LauncherError, UsageError, refuse
from ..job import payload, preflight
from ..job.job import Job
from ..job.source import Merge, current_folder, known_methods, read_sources
from ..profiles import precedence
from ..profiles.file import ProfileFile
from ..profiles.trust import applied
from ..settings.groups import JobOptions, MergeOptions, WorkerOptions
from .render import render

JobChain = tuple[Job, ...]
"""A merge job, then the jobs that wait for its success."""


class Findings(NamedTuple):
    """Errors and warnings of one merge, found before it is submitted."""

    errors: list[LauncherError | WorkerError]
    warnings: list[str]


@dataclass(frozen=True)
class Request:
    """A backend and the options of its jobs. All jobs carry the same payload."""

    backend: Backend[Any]
    options: JobOptions
    worker: WorkerOptions
    resources: Any
    taken: tuple[str, ...] = ()
    """The options of the backend that were not in the command, with their origins."""
    work: str = "merge"
    """The command of the worker that the jobs run."""

    @property
    def runs_in_foreground(self) -> bool:
        """Whether the command itself runs the jobs and waits for them."""
        return isinstance(self.backend, LocalBackend) and not self.backend.detached(self.resources)

    def check(self, merge: Merge) -> list[str]:
        """Plan a merge if its models are here; return warnings. Raises with every fault."""
        errors, warnings = self.findings(merge)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise type(errors[0])("\n".join(map(str, errors)))
        return warnings

    def findings(self, merge: Merge) -> Findings:
        """Check the job of one merge, and its plan as the worker will make it."""
        errors: list[LauncherError | WorkerError] = []
        warnings: list[str] = []
        try:
            first = self._split(self.job(merge))[0]
            faults = self.backend.faults(first, self.resources)
            refuse([*faults, *self.backend.obstacles(first, self.resources)])
            warnings += self.notes(first)
        except LauncherError as error:
            errors.append(error)
        if self.options.engine == "merge-worker":  # mergekit accepts and refuses other recipes
            try:
                all_here = isinstance(self.backend, LocalBackend)
                warnings += preflight.check(merge, self.worker, all_here)
            except WorkerError as error:
                errors.append(error)
        return Findings(errors, warnings)

    def jobs(self, *merges: Merge) -> JobChain:
        """Return the jobs of one merge, or of several made in one pass over their inputs.

        Raises UsageError if the backend cannot express them.
        """
        jobs = self._split(self.job(*merges))
        refuse(self.backend.faults(jobs[0], self.resources))
        return jobs

    def job(self, *merges: Merge) -> Job:
        """Return one job that does all, `--then` included."""
        python = self.options.python or self.backend.python()
        further = merges[1:]
        return Job(
            merges[0],
            self.options,
            self.worker,
            payload.build(),
            python,
            further=further,
            work=self.work,
        )

    def notes(self, job: Job) -> list[str]:
        """Return what of the options and the environment does not hold for a job."""
        return [*job.notes(), *self.backend.ignored_variables(os.environ)]

    def sources(self, job: Job) -> str:
        """Return one line: what the job takes from elsewhere than the command, and from where."""
        return ", ".join([*self.backend.assumptions(job, self.resources), *self.taken])

    def _split(self, job: Job) -> JobChain:
        return job.split() if self.backend.dependencies else (job,)

    def render(self, job: Job) -> str:
        """Return the exact text of a job. Raises UsageError if it is too long."""
        return render(self.backend, job, self.resources)


def read_request(
    backend: Backend[Any], words: list[str], given: Mapping[str, Any]
) -> tuple[Request, tuple[Merge, ...]]:
    """Read the SOURCE words and the flags of a command. Raises with every fault of them.

    There are several merges where windows or schedules ask for several results.
    """
    groups = [MergeOptions, JobOptions, WorkerOptions, backend.resources]
    (merge_options, options, worker, resources), taken = read_settings(groups, given, backend)
    methods = known_methods(worker.methods, os.environ)
    folder = current_folder(os.environ)
    read = read_sources(words, merge_options, worker.dtype, folder, methods)
    merges = tuple(preflight.with_runs_here(merge, worker) for merge in read)
    if len(merges) > 1 and options.then is not None:
        raise UsageError("--then: runs in one OUT; leave it out, or make a sweep of the windows")
    return Request(backend, options, worker, resources, taken), merges


def read_settings(
    groups: list[Any], given: Mapping[str, Any], backend: Backend[Any] | None
) -> tuple[list[Any], tuple[str, ...]]:
    """Return an instance of each option group, and what the backend's options took from where.

    Origins are flags, environment, profiles, the backend's own config file and its site. Raises
    UsageError with every fault.
    """
    flags, variables = precedence.flags(given), precedence.environment(os.environ)
    chosen = given.get("profile") or os.environ.get("MERGE_LAUNCH_PROFILE")
    name = None if backend is None else backend.name
    file = applied(ProfileFile.here())
    origins = [flags, variables, *precedence.profile(file, chosen, name)]
    if backend is None:
        return precedence.resolve(groups, origins), ()
    return settle(groups, origins, backend)


def settle(
    groups: list[Any], given: list[precedence.Origin], backend: Backend[Any]
) -> tuple[list[Any], tuple[str, ...]]:
    """Return the option groups from given origins, then the backend's own config and its site."""
    origins = list(given)
    place, values = backend.own_settings()
    origins.append(precedence.Origin(values, place))
    (resources,) = precedence.resolve([backend.resources], origins)
    if (site := backend.site(resources)) is not None:
        origins += precedence.profile(ProfileFile.read(None), site, backend.name)
    taken = precedence.taken(backend.resources, origins)
    return precedence.resolve(groups, origins), tuple(taken)
