"""The commands of merge-launch: they read words, call the parts and print what comes of it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.errors import printable

from . import __version__, backends, profile
from .backends import Backend, Here, Scheduler, Service, Submitted
from .commands import Command, guarded, say, with_options
from .errors import OutputError, refuse
from .job import Job
from .profile import Layer
from .records import Record
from .settings import CheckOptions, JobOptions, MergeOptions, WorkerOptions
from .source import Merge, current_folder, read_source

REPORT = "This is a bug of merge-launch. Please report it with the lines above and the command."


def layers(given: dict[str, Any], backend: str | None) -> list[Layer]:
    """Where settings come from, nearest first."""
    variables = profile.environment(os.environ)
    chosen = given.pop("profile") or variables.values.get("profile")
    path = profile.find(Path.cwd(), profile.config_folder())
    held = profile.load(path, None if chosen is None else str(chosen), backend)
    return [profile.flags(given), variables, *held]


class Request:
    """One backend command: its words and options as a job, and what the job asks for."""

    def __init__(self, backend: Backend[Any], source: list[str], given: dict[str, Any]) -> None:
        groups = [MergeOptions, JobOptions, WorkerOptions, backend.resources]
        found: list[Any] = profile.resolve(groups, layers(given, backend.name))
        merge_options, self.options, self.worker, self.resources = found
        folder = current_folder(os.environ)
        self.merge: Merge = read_source(source, merge_options, self.worker.dtype, folder)
        self.backend = backend

    def job(self) -> tuple[Job, str]:
        from . import payload, render

        python = self.options.python or self.backend.python()
        carried = payload.build(methods=payload.methods_of(self.merge.text))
        job = Job(self.merge, self.options, self.worker, carried, python)
        refuse(self.backend.faults(job, self.resources))
        return job, render.render(self.backend, job, self.resources)


def show(request: Request) -> int:
    """The job's text on stdout and nothing else; nothing is written or contacted."""
    job, text = request.job()
    for warning in [
        *request.merge.recipe.warnings,
        *request.backend.obstacles(job, request.resources),
    ]:
        say(f"warning: {warning}")
    sys.stdout.write(text)
    return 0


def launch(request: Request) -> int:
    from . import preflight, submit

    backend = request.backend
    job, text = request.job()
    refuse(backend.obstacles(job, request.resources))
    refuse(follow_faults(request))
    here = isinstance(backend, Here)
    for warning in preflight.look(request.merge, request.worker, everything=here):
        say(f"warning: {warning}")
    if isinstance(backend, Here):
        return submit.run_here(backend, text)
    if isinstance(backend, Service):
        tell(backend.submit(job, request.resources, text), job.merge.out)
        return 0
    if not isinstance(backend, Scheduler):
        raise TypeError(f"nothing knows how to run a {type(backend).__name__}")
    record = submit.submit(backend, job, request.resources, text)
    tell(submit.to_know(record), job.merge.out)
    keep(record)
    return followed(record) if request.options.follow else 0


def follow_faults(request: Request) -> list[str]:
    if request.options.follow and isinstance(request.backend, Service):
        return [f"--follow: not for {request.backend.name}; submit, then use the command it prints"]
    return []


def tell(job: Submitted, out: str) -> None:
    print(f"job     {job.job_id}")
    print(f"out     {printable(out)}")
    print(f"log     {printable(job.log)}")
    print(f"follow  {shlex.join(job.follow)}")
    print(f"cancel  {shlex.join(job.cancel)}", flush=True)


def keep(record: Record) -> None:
    """A job that is on its way is not undone by a full home folder."""
    from . import records

    try:
        records.keep(record)
    except OSError as error:
        say(
            f"warning: cannot note the job in {records.folder()} ({error.strerror}): 'logs', "
            f"'status' and 'cancel' will not know it"
        )


def followed(record: Record) -> int:
    from . import submit

    try:
        code = submit.follow(record, sys.stdout, submit.status)
    except KeyboardInterrupt:
        say(f"the job goes on; to cancel it: {shlex.join(submit.to_know(record).cancel)}")
        return 0
    return 0 if code is None else code


def check(source: list[str], given: dict[str, Any]) -> int:
    from worker import report

    from . import preflight

    groups = [MergeOptions, WorkerOptions, CheckOptions]
    found: list[Any] = profile.resolve(groups, layers(given, None))
    merge_options, worker_options, printing = found
    folder = current_folder(os.environ)
    merge = read_source(source, merge_options, worker_options.dtype, folder)
    plan = preflight.plan_of(merge, worker_options)
    for warning in plan.warnings:
        say(f"warning: {warning}")
    print(json.dumps(report.as_json(plan), indent=1) if printing.json else report.describe(plan))
    return 0


def payload_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the worker to this file")
    ] = None,
) -> int:
    """Print the digest of the worker; with -o write it as a file that python runs."""
    from . import payload

    made = payload.build()
    if output is not None:
        try:
            output.write_bytes(made.archive)
        except OSError as error:
            raise OutputError(f"{output}: {error.strerror}") from None
    print(f"{made.digest}  {output or 'merge-worker.pyz'}")
    say(f"{len(made.archive)} bytes, {len(made.encoded)} in a job")
    return 0


def status_command(job: str) -> int:
    """Say what has become of a job that was submitted from here."""
    from . import records, submit

    record = records.find(job)
    found = submit.status(record)
    print(f"{record.job_id}  {found.state.value}  ({printable(found.detail)})  {record.out}")
    return 0


def logs_command(
    job: str,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="until the job ends")] = False,
) -> int:
    """Print the log of a job that was submitted from here."""
    from . import records, submit

    record = records.find(job)
    if follow:
        followed(record)
    elif not submit.copy(Path(record.log), sys.stdout):
        say(f"{record.log}: nothing there yet")
    return 0


def cancel_command(job: str) -> int:
    """Cancel a job that was submitted from here."""
    from . import records, submit

    submit.cancel(records.find(job))
    print(f"{job}  asked to end; what is merged so far stays, and the same command goes on from it")
    return 0


def version(asked: bool) -> None:
    if asked:
        print(f"merge-launch {__version__}")
        raise typer.Exit


def top(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=version, is_eager=True)
    ] = False,
) -> None:
    """Merge model checkpoints, here or as one cluster job."""


def build() -> typer.Typer:
    def new(**more: Any) -> typer.Typer:
        return typer.Typer(
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            no_args_is_help=True,
            **more,
        )

    app = new()
    app.callback()(top)
    shown = new(add_completion=False, help="Print the job of a backend (= --dry-run).")
    for name in backends.names():
        add_backend(app, shown, backends.get(name))
    groups = (MergeOptions, WorkerOptions, CheckOptions)
    app.command("check", help="Plan a merge from headers; report every fault; write nothing.")(
        guarded(with_options(check, groups))
    )
    app.add_typer(shown, name="render")
    others: dict[str, Command] = {
        "payload": payload_command,
        "status": status_command,
        "logs": logs_command,
        "cancel": cancel_command,
    }
    for name, command in others.items():
        app.command(name)(guarded(command))
    return app


def add_backend(app: typer.Typer, shown: typer.Typer, backend: Backend[Any]) -> None:
    groups = (MergeOptions, backend.resources, JobOptions, WorkerOptions)

    def run(source: list[str], given: dict[str, Any]) -> int:
        request = Request(backend, source, given)
        return show(request) if request.options.dry_run else launch(request)

    def render(source: list[str], given: dict[str, Any]) -> int:
        return show(Request(backend, source, given))

    for target, command in ((app, run), (shown, render)):
        made = guarded(with_options(command, groups))
        target.command(backend.name, help=backend.help)(made)


def main() -> None:
    try:
        build()()
    except Exception:
        traceback.print_exc()
        say(REPORT)
        sys.exit(1)
