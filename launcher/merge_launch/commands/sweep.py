"""`merge-launch sweep SWEEP.yml BACKEND` and `… results`: many merges from one recipe."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from merge_worker.errors import OutputError as Taken
from merge_worker.errors import WorkerError

from .. import backends
from ..backends.base import Backend, LocalBackend, Scheduler
from ..errors import ClusterError, LauncherError, UsageError, refuse
from ..job.source import current_folder
from ..settings.groups import JobOptions, SweepOptions, WorkerOptions
from ..settings.options import OptionSpec, option
from ..sweeps.definition import Member, Sweep, gathered, read_sweep
from .wiring import guarded, say, with_options


@dataclass(frozen=True)
class ResultOptions:
    """How results are shown."""

    out: str | None = option(
        None, OptionSpec("the folder of the members, if it was given", "-o", "DIR")
    )
    sort: str | None = option(None, OptionSpec("by this column", metavar="COLUMN"))
    descending: bool = option(False, OptionSpec("the greatest first"))
    column: tuple[str, ...] = option(
        (), OptionSpec("show this result (repeatable)", metavar="NAME")
    )
    csv: bool = option(False, OptionSpec("all columns, for spreadsheets"))
    json: bool = option(False, OptionSpec("all columns, for programs"))


@dataclass(frozen=True)
class TableOptions:
    """How the members are shown before they are submitted."""

    json: bool = option(False, OptionSpec("with --dry-run: the members, for programs"))


def add(app: typer.Typer, sweep: typer.Typer) -> None:
    """Register the command; `sweep` is a bare application of the house's kind."""

    def chosen(
        context: typer.Context,
        sweep: Annotated[str, typer.Argument(metavar="SWEEP.yml", help="recipe, grid and list")],
    ) -> None:
        context.obj = sweep

    sweep.callback()(chosen)
    for name in backends.names():
        _add_backend(sweep, backends.get(name))
    words = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    sweep.command("results", help="A table of the members: state, values, what --then printed.")(
        guarded(with_options(results, (ResultOptions,), words))
    )
    app.add_typer(sweep, name="sweep")


def _add_backend(sweep: typer.Typer, backend: Backend[Any]) -> None:
    def run(context: typer.Context, given: dict[str, Any]) -> int:
        return launch(context.obj, backend, given)

    words = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    groups = (SweepOptions, backend.resources, JobOptions, WorkerOptions, TableOptions)
    sweep.command(backend.name, help=backend.help)(guarded(with_options(run, groups, words)))


def launch(word: str, backend: Backend[Any], given: dict[str, Any]) -> int:
    from ..profiles import layers
    from ..submission.prepare import SweepRequest, option_layers
    from ..sweeps import state

    groups = [SweepOptions, JobOptions, WorkerOptions, TableOptions, backend.resources]
    found: list[Any] = layers.resolve(groups, option_layers(given, backend.name))
    how, options, worker, shown, resources = found
    if shown.json and not options.dry_run:
        raise UsageError("--json is for --dry-run; of what was submitted, see `results --json`")
    refuse(list(_faults(how, options, backend, resources)))
    sweep = read_sweep(word, how.out, current_folder(os.environ))
    for warning in sweep.warnings:
        say(f"warning: {warning}")
    order = SweepRequest(sweep, backend, options, worker, resources)
    states, failures = state.look(sweep)
    for failure in failures:
        say(f"warning: {failure}")
    todo = [
        each
        for each in sweep.members
        if not states[each.name].on_its_way and (worker.overwrite or not state.merged(each))
    ]
    if options.dry_run:
        _table(sweep, states, todo, shown.json)
        return 0
    for warning in look(order, todo):
        say(f"warning: {warning}")
    return _submit(order, how, todo)


def _faults(
    how: SweepOptions, options: JobOptions, backend: Backend[Any], resources: Any
) -> Iterator[str]:
    if how.array and how.one_pass:
        yield "--array and --one-pass: choose one"
    if options.name is not None:
        yield "--name: the members of a sweep have names of their own; see 'name' in SWEEP.yml"
    if options.follow:
        yield "--follow: for one job; see `merge-launch sweep SWEEP.yml results`"
    if not how.array and (how.array_size or how.at_once):
        yield "--array-size and --at-once are for --array"
    if how.array and not (isinstance(backend, Scheduler) and backend.arrays(resources)):
        yield f"--array: {backend.name} has no arrays"
    if how.one_pass and options.then is not None and not backend.dependencies:
        yield f"--one-pass with --then: {backend.name} has no job that waits for another"
    if isinstance(backend, LocalBackend) and backend.detached(resources) and not how.one_pass:
        yield "--detach: here the members run one after the other; leave it out, or use --one-pass"


def _table(sweep: Sweep, states: Any, todo: Sequence[Member], as_json: bool) -> None:
    from .. import table

    rows: list[dict[str, object]] = []
    for each in sweep.members:
        word = states[each.name].word if each not in todo else "to submit"
        absent = None if as_json else "-"
        values = {label: each.values.get(label, absent) for label in sweep.labels}
        rows.append({"member": each.name, **values, "now": word, "out": each.merge.out})
    table.show(rows, ["member", *sweep.labels, "now", "out"], as_json)
    say(f"{len(todo)} of {len(sweep.members)} to submit; nothing was")


def look(order: Any, members: Sequence[Member]) -> list[str]:
    """Plan every member where its models are here. All faults of all members at once; warnings."""
    from ..sweeps.state import other_merge

    where, count = order.sweep.where, len(members)
    faults: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    kinds: list[type[LauncherError] | type[WorkerError]] = []
    for each in members:
        for fault in order.faults(each):
            faults.append((each.name, fault))
            kinds.append(UsageError)
        if other_merge(each) and not order.worker.overwrite:
            fault = f"{each.merge.out} holds another merge; --overwrite replaces it"
            faults.append((each.name, fault))
            kinds.append(Taken)
        try:
            warnings += [(each.name, line) for line in order.look(each)]
        except WorkerError as error:
            faults += [(each.name, line) for line in str(error).splitlines()]
            kinds.append(type(error))
    if faults:
        raise kinds[0]("\n  ".join(gathered(where, count, faults)))
    known = set(order.sweep.warnings)
    return [line for line in gathered(where, count, warnings) if line not in known]


def _submit(order: Any, how: SweepOptions, todo: Sequence[Member]) -> int:
    from ..sweeps import arrays, jobs
    from . import jobs as job_commands

    already = len(order.sweep.members) - len(todo)
    if already:
        say(f"{already} of {len(order.sweep.members)} are done or on their way; see `results`")
    if not todo:
        return 0
    if how.one_pass:
        started = jobs.in_one_pass(order, todo)
    elif how.array:
        started = arrays.arrays(order, todo, how.array_size, how.at_once)
    else:
        started = jobs.each(order, todo)
    count, failure = 0, None
    try:
        for member, fresh in started:
            count += 1
            job_commands.keep(fresh)
            ids = " then ".join(record.job_id for record in fresh) or "ended"
            print(f"{ids}  {member.name}", flush=True)
    except (LauncherError, WorkerError) as error:
        failure = error
    asks = ["merge-launch", "sweep", order.sweep.where, "results"]
    asks += ["--out", how.out] if how.out else []
    if failure is not None:
        say(f"{count} of {len(todo)} submitted; the same command submits the rest. {failure}")
        return failure.exit_code
    print(f"out     {order.sweep.out}")
    print(f"table   {shlex.join(asks)}")
    return 0


def results(context: typer.Context, given: dict[str, Any]) -> int:
    from .. import table
    from ..profiles import layers
    from ..sweeps import results as sweep_results
    from ..sweeps import state

    given.pop("profile", None)
    (how,) = layers.resolve([ResultOptions], [layers.flags(given)])
    sweep = read_sweep(context.obj, how.out, current_folder(os.environ))
    states, failures = state.look(sweep)
    rows, named = sweep_results.rows(sweep, states)
    rows = sweep_results.in_order(rows, how.sort, how.descending)
    if how.csv:
        sweep_results.write_csv(rows, sys.stdout)
    elif how.json:
        table.show(rows, [], as_json=True)
    else:
        columns, more = sweep_results.columns(sweep, rows, named, how.column)
        table.show([sweep_results.for_people(row) for row in rows], columns, as_json=False)
        if more:
            say(more)
    for failure in failures:
        say(f"{failure}; states are as they were last seen")
    return ClusterError.exit_code if failures else 0
