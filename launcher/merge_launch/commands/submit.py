"""`merge-launch BACKEND` submits or runs one merge; `render BACKEND` prints its job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from merge_worker.command_line.parser import Parser

from .. import backends
from ..job.source import Merge
from ..settings.groups import JobOptions, MergeOptions, WorkerOptions
from ..submission.prepare import Request, read_request
from ..submission.submit import run_here, submit
from .decorators import Run, add_settings, add_source, given, say
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


def options(parser: Parser, place: str, *, only_text: bool = False) -> Run:
    """Add the words and options of `BACKEND SOURCE…`, or of `render BACKEND SOURCE…`."""
    backend = backends.get(place)
    add_source(parser)
    unread = ("dry_run", "follow") if only_text else ()
    add_settings(parser, (MergeOptions, backend.resources, JobOptions, WorkerOptions), unread)

    def run(arguments: argparse.Namespace) -> int:
        request, merges = read_request(backend, arguments.source, given(arguments))
        text = only_text or request.options.dry_run
        return show(request, merges) if text else launch(request, merges)

    return run


def render_options(parser: Parser, place: str) -> Run:
    """Add the words and options of `render BACKEND`."""
    return options(parser, place, only_text=True)
