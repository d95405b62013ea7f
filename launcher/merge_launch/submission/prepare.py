"""TODO"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.base import Backend, LocalBackend
from ..errors import LauncherError, refuse
from ..job import payload, preflight
from ..job.job import Job
from ..job.source import Merge, current_folder, read_source
from ..profiles import file, layers
from ..profiles.layers import Layer
from ..settings.groups import JobOptions, MergeOptions, WorkerOptions
from ..sweeps.definition import Member, Sweep
from . import render

RenderedJob = list[tuple[Job, str]]


@dataclass(frozen=True)
class SweepRequest:
    """How every member is to run."""

    sweep: Sweep
    backend: Backend[Any]
    options: JobOptions
    worker: WorkerOptions
    resources: Any

    def look(self, member: Member) -> list[str]:
        """Warnings of its plan. WorkerError with all faults."""
        return preflight.check(member.merge, self.worker, isinstance(self.backend, LocalBackend))

    def job(self, *members: Member) -> Job:
        """One job; of several members in one pass."""
        python = self.options.python or self.backend.python()
        first, *rest = (member.merge for member in members)
        carried = payload.build()
        return Job(first, self.options, self.worker, carried, python, further=tuple(rest))

    def parts(self, *members: Member, apart: bool = True) -> RenderedJob:
        """With `apart`, what follows is a job of its own where the scheduler has such."""
        whole = self.job(*members)
        jobs = whole.split() if apart and self.backend.dependencies else (whole,)
        return [(job, render.render(self.backend, job, self.resources)) for job in jobs]

    def faults(self, *members: Member) -> list[str]:
        try:
            job = self.job(*members)
        except LauncherError as error:
            return str(error).splitlines()
        found = self.backend.faults(job, self.resources)
        return [*found, *self.backend.obstacles(job, self.resources)]


def option_layers(given: dict[str, Any], backend: str | None) -> list[Layer]:
    """Where settings come from, nearest first."""
    variables = layers.environment(os.environ)
    chosen = given.pop("profile") or variables.values.get("profile")
    path = file.find(Path.cwd(), layers.config_folder())
    held = layers.load(path, None if chosen is None else str(chosen), backend)
    return [layers.flags(given), variables, *held]


class Request:
    """One backend command: its words and options as a job, and what the job asks for."""

    def __init__(
        self, backend: Backend[Any], source: list[str], given: dict[str, Any], shown: bool = False
    ) -> None:
        groups = [MergeOptions, JobOptions, WorkerOptions, backend.resources]
        found: list[Any] = layers.resolve(groups, option_layers(given, backend.name))
        merge_options, self.options, self.worker, self.resources = found
        folder = current_folder(os.environ)
        self.merge: Merge = read_source(source, merge_options, self.worker.dtype, folder)
        self.backend = backend
        self.shown = shown or self.options.dry_run

    def look(self) -> list[str]:
        """Warnings of a plan of the merge. WorkerError with all faults."""
        from ..job import preflight

        if self.options.engine == "mergekit":  # it refuses and takes other things than the worker
            return []
        return preflight.check(self.merge, self.worker, isinstance(self.backend, LocalBackend))

    def parts(self) -> list[tuple[Job, str]]:
        """The jobs of the merge, each with its text: one, or another for `--then`."""
        from ..job import payload
        from . import render

        python = self.options.python or self.backend.python()
        whole = Job(self.merge, self.options, self.worker, payload.build(), python)
        jobs = whole.split() if self.backend.dependencies else (whole,)
        refuse(self.backend.faults(jobs[0], self.resources))
        return [(job, render.render(self.backend, job, self.resources)) for job in jobs]
