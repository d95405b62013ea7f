"""TODO"""

from __future__ import annotations

import sys
from typing import Any

import typer

from ..backends.base import Backend, LocalBackend, Scheduler, Service
from ..errors import refuse
from ..settings.groups import JobOptions, MergeOptions, WorkerOptions
from ..submission.prepare import Request
from .wiring import guarded, say, with_options


def show(request: Request) -> int:
    """The job's text on stdout and nothing else; nothing is written or contacted."""
    parts = request.parts()
    for warning in [
        *request.merge.recipe.warnings,
        *request.backend.obstacles(parts[0][0], request.resources),
    ]:
        say(f"warning: {warning}")
    for _, text in parts:
        sys.stdout.write(text)
    return 0


def launch(request: Request) -> int:
    from ..submission import submit
    from . import jobs

    backend, resources = request.backend, request.resources
    parts = request.parts()
    job, text = parts[0]
    refuse(backend.obstacles(job, resources))
    warnings = request.look()
    if isinstance(backend, LocalBackend) and not backend.detached(resources):
        # The worker tells its warnings itself.
        return submit.run_here(backend, text, request.options.notify)
    for warning in warnings:
        say(f"warning: {warning}")
    if isinstance(backend, Service):
        fresh = [submit.submit_to_service(backend, job, text, resources)]
    elif isinstance(backend, Scheduler):
        fresh = submit.submit(backend, parts, resources)
    else:
        raise TypeError(f"nothing knows how to run a {type(backend).__name__}")
    return jobs.report_submitted(fresh, request.options.follow)


def add_backend(app: typer.Typer, shown: typer.Typer, backend: Backend[Any], whole: bool) -> None:
    groups = (MergeOptions, backend.resources, JobOptions, WorkerOptions) if whole else ()

    def run(source: list[str], given: dict[str, Any]) -> int:
        request = Request(backend, source, given)
        return show(request) if request.shown else launch(request)

    def render(source: list[str], given: dict[str, Any]) -> int:
        return show(Request(backend, source, given, shown=True))

    for target, command in ((app, run), (shown, render)):
        made = guarded(with_options(command, groups))
        target.command(backend.name, help=backend.help)(made)
