"""`merge-launch BACKEND` submits or runs one merge; `render BACKEND` prints its job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from ..backends.base import Backend
from ..job.source import Merge
from ..settings.groups import JobOptions, MergeOptions, WorkerOptions
from ..submission.prepare import Request, read_request
from ..submission.submit import run_here, submit
from .decorators import guarded, say, with_options
from .jobs import report_submitted


def launch(request: Request, merges: Sequence[Merge]) -> int:
    """Check merges of one pass, then run them in this terminal or submit their jobs."""
    warnings = dict.fromkeys(line for merge in merges for line in request.check(merge))
    jobs = request.jobs(*merges)
    if request.runs_in_foreground:
        for note in notes_on_runs(merges):
            say(f"warning: {note}")
        return run_here(request, jobs[0])  # the worker prints its warnings itself
    for warning in warnings:
        say(f"warning: {warning}")
    if sources := request.sources(jobs[0]):
        say(sources)
    return report_submitted(submit(request, jobs), request.options.follow)


def notes_on_runs(merges: Sequence[Merge]) -> list[str]:
    """Return the notes on checkpoints that were not picked, which only this command can give."""
    runs = (run for merge in merges for run in merge.recipe.runs())
    return list(dict.fromkeys(note for run in runs for note in run.notes))


def show(request: Request, merges: Sequence[Merge]) -> int:
    """Print the text of the jobs on stdout and nothing else; write and contact nothing."""
    jobs = request.jobs(*merges)
    texts = [request.render(job) for job in jobs]
    obstacles = request.backend.obstacles(jobs[0], request.resources)
    recipes = dict.fromkeys(line for merge in merges for line in merge.recipe.warnings)
    for warning in (*recipes, *request.notes(jobs[0]), *obstacles):
        say(f"warning: {warning}")
    if sources := request.sources(jobs[0]):
        say(sources)
    sys.stdout.write("".join(texts))
    return 0


def add_backend(
    app: typer.Typer, renderer: typer.Typer, backend: Backend[Any], with_all_options: bool
) -> None:
    """Add the commands `BACKEND` and `render BACKEND`."""
    groups = (MergeOptions, backend.resources, JobOptions, WorkerOptions)

    def run(source: list[str], given: dict[str, Any]) -> int:
        request, merges = read_request(backend, source, given)
        return show(request, merges) if request.options.dry_run else launch(request, merges)

    def render(source: list[str], given: dict[str, Any]) -> int:
        return show(*read_request(backend, source, given))

    for target, command in ((app, run), (renderer, render)):
        options = with_options(command, groups if with_all_options else ())
        target.command(backend.name, help=backend.help)(guarded(options))
