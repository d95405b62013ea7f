"""`merge-launch search SEARCH.yml BACKEND`, `… results` and `… best`."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_worker.command_line.parser import Parser
from merge_worker.drawing.files import check_plot
from merge_worker.errors import WorkerError
from merge_worker.messages import printable
from merge_worker.output.files import write_file
from merge_worker.search.results import summary

from .. import backends, table
from ..backends.base import Backend, LocalBackend, Service
from ..errors import LauncherError, OutputError, UsageError, refuse
from ..job.job import SEARCH
from ..job.source import current_folder, known_methods
from ..profiles import precedence
from ..searches import jobs
from ..searches import results as search_results
from ..searches.jobs import SearchFile
from ..settings.groups import JobOptions, SearchOptions, WorkerOptions, shared
from ..settings.options import option
from ..submission.prepare import Request, read_settings
from ..submission.submit import run_here
from ..sweeps.results import for_people, in_order, write_csv
from .decorators import Run, add_settings, emit, given, say
from .jobs import warn_of_unkept

REFUSED = {
    "push": "for one merge; push the best candidate afterwards",
    "private": "for one merge; push the best candidate afterwards",
    "overwrite": "candidates are never replaced; choose another 'out'",
    "no_resume": "a search is always continued; choose another 'out'",
}


@dataclass(frozen=True)
class ResultOptions:
    """Options of the table of candidates."""

    out: str | None = option(None, "the folder of the search, if it was given", "OUT", short="-o")
    sort: str | None = option(None, "sort by this column", "COLUMN")
    descending: bool = option(False, "greatest values first")
    csv: bool = option(False, "print all columns as CSV")
    json: bool = option(False, "print all columns as JSON")
    plot: str | None = option(
        None, "draw scores over trials, and against each value", "FILE.png|.html"
    )
    methods: str | None = shared("methods")


@dataclass(frozen=True)
class BestOptions:
    """Options of `best`."""

    recipe: str | None = option(
        None, "write the recipe to this file; default: print it", "FILE.yml"
    )
    out: str | None = option(None, "the folder of the search, if it was given", "OUT")
    methods: str | None = shared("methods")


UNREAD = (*REFUSED, "then", "engine", "follow")
"""Options of a merge and its job that a search refuses."""


def places() -> dict[str, str]:
    """Return what may follow the file, with help."""
    return {
        **{name: backends.get(name).help for name in backends.names()},
        "results": "show the candidates: values and scores, and the gain over the best parent",
        "best": "print the recipe of the best candidate so far, or write it to a file",
    }


def options(parser: Parser, place: str) -> Run:
    """Add the words and options of `search SEARCH.yml PLACE`."""
    parser.add_argument("path", metavar="SEARCH.yml", help="recipe and space")
    if place == "results":
        add_settings(parser, (ResultOptions,))
        return lambda arguments: results(arguments.path, given(arguments))
    if place == "best":
        add_settings(parser, (BestOptions,))
        for flag in ("-o", "--output"):
            parser.add_alias(flag, "recipe")
        return lambda arguments: best(arguments.path, given(arguments))
    backend = backends.get(place)
    add_settings(parser, (SearchOptions, backend.resources, JobOptions, WorkerOptions), UNREAD)
    return lambda arguments: launch(backend, arguments.path, given(arguments))


def launch(backend: Backend[Any], path: str, given: dict[str, Any]) -> int:
    """Run a worker of a search here, or submit several."""
    groups = [SearchOptions, JobOptions, WorkerOptions, backend.resources]
    settings, taken = read_settings(groups, given, backend)
    search_options, options, worker, resources = settings
    refuse(list(_conflicts(search_options, options, worker, backend, resources)))
    count = search_options.workers or getattr(resources, "replicas", 1)
    if isinstance(backend, Service):
        resources = dataclasses.replace(resources, replicas=count)
    file = _read(path, search_options.out, worker.methods, search_options.batch)
    request = Request(backend, options, worker, resources, taken, SEARCH)
    if options.dry_run:
        return _show(request, file)
    errors, warnings = jobs.findings(request, file)
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))
    for warning in dict.fromkeys([*file.search.warnings, *warnings]):
        say(f"warning: {warning}")
    job = request.jobs(file.merge)[0]
    if request.runs_in_foreground:
        return run_here(request, job)
    if sources := request.sources(job):
        say(sources)
    return _submit(request, file, 1 if isinstance(backend, Service) else count, search_options)


def _read(path: str, out: str | None, files: str | None, batch: int | None = None) -> SearchFile:
    methods = known_methods(files, os.environ)
    return jobs.read_file(path, out, current_folder(os.environ), methods, batch)


def _conflicts(
    search: SearchOptions,
    options: JobOptions,
    worker: WorkerOptions,
    backend: Backend[Any],
    resources: Any,
) -> Iterator[str]:
    for name, way_out in REFUSED.items():
        if getattr(worker, name):
            yield f"--{name.replace('_', '-')}: {way_out}"
    if options.then is not None:
        yield "--then: a search has 'evaluate' for each candidate, and 'validate' at its end"
    if options.engine != "merge-worker":
        yield "--engine: candidates are merged by merge-worker"
    if options.follow:
        yield "--follow: for one merge; see `merge-launch search SEARCH.yml results`"
    if getattr(resources, "nodes", 1) > 1:
        yield "--nodes: each worker of a search has one node; use --workers"
    replicas = getattr(resources, "replicas", 1)
    if search.workers and replicas > 1 and search.workers != replicas:
        yield "--workers and --replicas differ; keep one"
    here = isinstance(backend, LocalBackend) and not backend.detached(resources)
    if here and (search.workers or 1) > 1:
        yield "--workers: in this terminal there is one; use --detach for several"


def _show(request: Request, file: SearchFile) -> int:
    """Print the text of a worker's job, and nothing else."""
    job = request.jobs(file.merge)[0]
    text = request.render(job)
    obstacles = request.backend.obstacles(job, request.resources)
    for warning in (*file.search.warnings, *request.notes(job), *obstacles):
        say(f"warning: {warning}")
    sys.stdout.write(text)
    return 0


def _submit(request: Request, file: SearchFile, count: int, options: SearchOptions) -> int:
    submitted = 0
    try:
        for records in jobs.submit_workers(request, file, count):
            submitted += 1
            emit(f"job     {records[0].job_id}")
            warn_of_unkept(records)
    except (LauncherError, WorkerError) as error:
        if submitted:
            say(f"{submitted} of {count} workers submitted; they do the whole search. {error}")
            return error.exit_code
        raise
    command = ["merge-launch", "search", file.path, "results"]
    command += ["--out", options.out] if options.out else []
    emit(
        f"search  {jobs.title(file)}",
        f"out     {printable(file.merge.out)}",
        f"table   {shlex.join(command)}",
    )
    return 0


def results(path: str, given: dict[str, Any]) -> int:
    """Show the candidates: their values and scores, and the gain over the best parent."""
    (options,) = precedence.resolve([ResultOptions], [precedence.flags(given)])
    check_plot(options.plot)
    file = _read(path, options.out, options.methods)
    rows = search_results.rows(file)
    if not rows and not (options.json or options.csv):
        raise UsageError(f"{file.merge.out}: no candidates yet; start the search with a backend")
    if options.plot:
        search_results.draw(file, options.plot)
    rows = in_order(rows, options.sort, options.descending)
    if options.csv:
        write_csv(rows, sys.stdout)
    elif options.json:
        table.show(rows, [], as_json=True)
    else:
        shown = [for_people(row) for row in rows]
        table.show(shown, search_results.columns(file, rows), as_json=False)
        emit("", *map(printable, summary(file.search, Path(file.merge.out))))
        if options.plot:
            emit(f"picture    {printable(options.plot)}")
    return 0


def best(path: str, given: dict[str, Any]) -> int:
    """Print the recipe of the best candidate so far, or write it to a file."""
    (options,) = precedence.resolve([BestOptions], [precedence.flags(given)])
    file = _read(path, options.out, options.methods)
    name, recipe = search_results.best_recipe(file)
    if options.recipe is None:
        sys.stdout.write(recipe.decode("utf-8", "replace"))
        return 0
    target = Path(options.recipe).expanduser()
    try:
        write_file(target, recipe)
    except OSError as error:
        raise OutputError(f"{printable(str(target))}: {error.strerror}") from None
    emit(f"{name}: {printable(str(target))}")
    return 0
