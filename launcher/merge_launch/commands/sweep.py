"""`merge-launch sweep SWEEP.yml BACKEND` and `… results`: many merges from one recipe."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_worker.command_line.parser import Parser
from merge_worker.errors import WorkerError
from merge_worker.messages import counted, first_names, printable

from .. import backends, table
from ..backends.base import Backend, LocalBackend, Scheduler
from ..errors import ClusterError, LauncherError, UsageError, refuse
from ..job.source import current_folder, known_methods
from ..profiles import precedence
from ..settings.groups import JobOptions, SweepOptions, WorkerOptions, shared
from ..settings.options import option
from ..submission.prepare import Request, read_settings
from ..sweeps import arrays, jobs, lock, state
from ..sweeps import results as sweep_results
from ..sweeps.definition import Member, Sweep, read_sweep
from ..sweeps.state import MemberState
from .decorators import Run, add_settings, emit, given, say
from .jobs import warn_of_unkept


@dataclass(frozen=True)
class ResultOptions:
    """Options of the table of results."""

    out: str | None = option(None, "the folder of the members, if it was given", "OUT", short="-o")
    sort: str | None = option(None, "sort by this column", "COLUMN")
    descending: bool = option(False, "greatest values first")
    column: tuple[str, ...] = option((), "show this result (repeatable)", "NAME")
    csv: bool = option(False, "print all columns as CSV")
    json: bool = option(False, "print all columns as JSON")
    methods: str | None = shared("methods")


@dataclass(frozen=True)
class TableOptions:
    """Options of the table of members that --dry-run prints."""

    json: bool = option(False, "with --dry-run: print the members as JSON")


RESULTS = "show the members: state, values, and results printed by --then"
UNREAD = ("name", "follow")
"""Options of a job that a sweep refuses."""


def places() -> dict[str, str]:
    """Return what may follow the file, with help."""
    return {**{name: backends.get(name).help for name in backends.names()}, "results": RESULTS}


def options(parser: Parser, place: str) -> Run:
    """Add the words and options of `sweep SWEEP.yml PLACE`."""
    parser.add_argument("path", metavar="SWEEP.yml", help="recipe, grid and list")
    if place == "results":
        add_settings(parser, (ResultOptions,), ())
        return lambda arguments: results(arguments.path, given(arguments))
    backend = backends.get(place)
    groups = (SweepOptions, backend.resources, JobOptions, WorkerOptions, TableOptions)
    add_settings(parser, groups, UNREAD)
    return lambda arguments: launch(backend, arguments.path, given(arguments))


def launch(backend: Backend[Any], path: str, given: dict[str, Any]) -> int:
    """Submit the members of a sweep that are neither finished nor on their way."""
    groups = [SweepOptions, JobOptions, WorkerOptions, TableOptions, backend.resources]
    settings, taken = read_settings(groups, given, backend)
    sweep_options, options, worker, table_options, resources = settings
    if table_options.json and not options.dry_run:
        raise UsageError("--json requires --dry-run; see `results --json` after the submission")
    refuse(list(_conflicts(sweep_options, options, backend, resources)))
    methods = known_methods(worker.methods, os.environ)
    sweep = read_sweep(path, sweep_options.out, current_folder(os.environ), methods)
    request = Request(backend, options, worker, resources, taken)
    if options.dry_run:
        states, todo = _todo(request, sweep)
        _show_members(sweep, states, todo, table_options.json)
        return 0
    with contextlib.nullcontext() if request.runs_in_foreground else lock.held(sweep, say):
        _, todo = _todo(request, sweep)
        for warning in jobs.check_members(request, sweep, todo):
            say(f"warning: {warning}")
        if todo and (sources := request.sources(request.job(todo[0].merge))):
            say(sources)
        return _submit(request, sweep, todo, sweep_options)


def _todo(request: Request, sweep: Sweep) -> tuple[Mapping[str, MemberState], list[Member]]:
    """Return the states of all members, and the members to submit; print warnings."""
    states, failures = state.member_states(sweep)
    for warning in (*sweep.warnings, *failures):
        say(f"warning: {warning}")
    open_members = [
        member
        for member in sweep.members
        if not states[member.name].is_active
        and (request.worker.overwrite or not state.is_merged(member))
    ]
    unseen = [member for member in open_members if states[member.name].may_be_active]
    if unseen:
        names = first_names((member.name for member in unseen), 4)
        say(
            f"warning: {counted(len(unseen), 'members are left alone')}, since they may be waiting "
            f"or running: {names}; 'merge-launch retry OUT' submits one all the same"
        )
    return states, [member for member in open_members if member not in unseen]


def _conflicts(
    sweep: SweepOptions, options: JobOptions, backend: Backend[Any], resources: Any
) -> Iterator[str]:
    if sweep.array and sweep.one_pass:
        yield "--array conflicts with --one-pass; choose one"
    if options.name is not None:
        yield "--name: the members of a sweep have names of their own; see 'name' in SWEEP.yml"
    if options.follow:
        yield "--follow: for one job; see `merge-launch sweep SWEEP.yml results`"
    if not sweep.array and (sweep.array_size or sweep.at_once):
        yield "--array-size and --at-once require --array"
    if sweep.array and not (isinstance(backend, Scheduler) and backend.arrays(resources)):
        yield f"--array: {backend.name} has no arrays"
    if sweep.one_pass and options.then is not None and not backend.dependencies:
        yield f"--one-pass with --then: {backend.name} has no job that waits for another"
    if isinstance(backend, LocalBackend) and backend.detached(resources) and not sweep.one_pass:
        yield "--detach: here the members run one after the other; leave it out, or use --one-pass"


def _show_members(
    sweep: Sweep, states: Mapping[str, MemberState], todo: Sequence[Member], as_json: bool
) -> None:
    rows: list[dict[str, object]] = []
    for member in sweep.members:
        now = states[member.name].text if member not in todo else "to submit"
        missing = None if as_json else "-"
        values = {label: member.values.get(label, missing) for label in sweep.labels}
        rows.append({"member": member.name, **values, "now": now, "out": member.merge.out})
    table.show(rows, ["member", *sweep.labels, "now", "out"], as_json)
    say(f"{len(todo)} of {len(sweep.members)} to submit; nothing was submitted")


def _submit(request: Request, sweep: Sweep, todo: Sequence[Member], options: SweepOptions) -> int:
    if already := len(sweep.members) - len(todo):
        say(f"{already} of {len(sweep.members)} are done or on their way; see `results`")
    if not todo:
        return 0
    if options.one_pass:
        submitted = jobs.submit_one_pass(request, todo)
    elif options.array:
        submitted = arrays.submit_arrays(request, sweep, todo, options)
    else:
        submitted = jobs.submit_each(request, todo)
    count = 0
    try:
        for member, records in submitted:
            count += 1
            ids = " then ".join(record.job_id for record in records) or "ended"
            emit(f"{ids}  {member.name}")
            warn_of_unkept(records)
    except (LauncherError, WorkerError) as error:
        say(f"{count} of {len(todo)} submitted; the same command submits the rest. {error}")
        return error.exit_code
    command = ["merge-launch", "sweep", sweep.path, "results"]
    command += ["--out", options.out] if options.out else []
    emit(f"out     {printable(str(sweep.out))}", f"table   {shlex.join(command)}")
    return 0


def results(path: str, given: dict[str, Any]) -> int:
    """Print a row for each member: its state, its values and the results printed by `--then`."""
    (options,) = precedence.resolve([ResultOptions], [precedence.flags(given)])
    methods = known_methods(options.methods, os.environ)
    sweep = read_sweep(path, options.out, current_folder(os.environ), methods)
    states, failures = state.member_states(sweep)
    rows, result_names = sweep_results.rows(sweep, states)
    rows = sweep_results.in_order(rows, options.sort, options.descending)
    if options.csv:
        sweep_results.write_csv(rows, sys.stdout)
    elif options.json:
        table.show(rows, [], as_json=True)
    else:
        columns, note = sweep_results.columns(sweep, rows, result_names, options.column)
        table.show([sweep_results.for_people(row) for row in rows], columns, as_json=False)
        if note:
            say(note)
    for failure in failures:
        say(f"{failure}; showing the last known states")
    return ClusterError.exit_code if failures else 0
