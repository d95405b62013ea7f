"""The commands of merge-launch: they read words, call the parts and print what comes of it."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from worker import from_mergekit
from worker.errors import WorkerError

from . import __version__, backends, profile, profile_command
from .backends import Backend, Here, Scheduler, Service
from .commands import guarded, say, with_options
from .errors import OutputError, refuse
from .following import COMMANDS
from .job import Job
from .profile import Layer
from .settings import CheckOptions, JobOptions, MergeOptions, WorkerOptions
from .source import Merge, current_folder, read_source, with_absent

SWEEP = "Make many merges: one recipe, many values."
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

    def __init__(
        self, backend: Backend[Any], source: list[str], given: dict[str, Any], shown: bool = False
    ) -> None:
        groups = [MergeOptions, JobOptions, WorkerOptions, backend.resources]
        found: list[Any] = profile.resolve(groups, layers(given, backend.name))
        merge_options, self.options, self.worker, self.resources = found
        folder = current_folder(os.environ)
        self.merge: Merge = read_source(source, merge_options, self.worker.dtype, folder)
        self.backend = backend
        self.shown = shown or self.options.dry_run

    def look(self) -> list[str]:
        """Warnings of a plan of the merge. WorkerError with all faults."""
        from . import preflight

        if self.options.engine == "mergekit":  # it refuses and takes other things than the worker
            return []
        return preflight.look(self.merge, self.worker, isinstance(self.backend, Here))

    def parts(self) -> list[tuple[Job, str]]:
        """The jobs of the merge, each with its text: one, or another for `--then`."""
        from . import payload, render

        python = self.options.python or self.backend.python()
        whole = Job(self.merge, self.options, self.worker, payload.build(), python)
        jobs = whole.apart() if self.backend.dependencies else (whole,)
        refuse(self.backend.faults(jobs[0], self.resources))
        return [(job, render.render(self.backend, job, self.resources)) for job in jobs]


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
    from . import following, submit

    backend, resources = request.backend, request.resources
    parts = request.parts()
    job, text = parts[0]
    refuse(backend.obstacles(job, resources))
    warnings = request.look()
    if isinstance(backend, Here) and not backend.detached(resources):
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
    return following.told(fresh, request.options.follow)


def check(source: list[str], given: dict[str, Any]) -> int:
    from worker import report

    from . import preflight

    groups = [MergeOptions, WorkerOptions, CheckOptions]
    found: list[Any] = profile.resolve(groups, layers(given, None))
    merge_options, worker_options, printing = found
    folder = current_folder(os.environ)
    try:
        merge = read_source(source, merge_options, worker_options.dtype, folder)
    except WorkerError as error:
        raise with_absent(error, source, folder) from None
    plan = preflight.plan_of(merge, worker_options)
    for warning in plan.warnings if printing.json else ():  # else they end the text
        say(f"warning: {warning}")
    told = report.checked(plan, Path(merge.out), printing.json)
    print(told.text)
    if told.fault is not None:
        raise told.fault
    return 0


def payload_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the worker to this file")
    ] = None,
) -> int:
    """Print the worker's digest; -o writes it as a file."""
    from . import payload

    made = payload.build()
    if output is not None:
        try:
            output.write_bytes(made.archive)
        except OSError as error:
            raise OutputError(f"{output}: {error.strerror}") from None
    print(f"{made.digest}  {output or 'merge-worker.pyz'}")
    say(f"{len(made.archive)} bytes, {len(made.parcel.encoded)} in a job")
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


def build(asked: str | None = None) -> typer.Typer:
    """The application. With `asked`, that command alone has its options: a help of all others shows
    a line of each, and their options take a tenth of a second to make."""

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
        add_backend(app, shown, backends.get(name), asked in (None, name, "render"))
    groups = (MergeOptions, WorkerOptions, CheckOptions) if asked in (None, "check") else ()
    app.command("check", help="Plan a merge from headers; report every fault; write nothing.")(
        guarded(with_options(check, groups))
    )
    app.add_typer(shown, name="render")
    if asked in (None, "sweep"):
        from . import sweep_command

        sweep_command.add(app, new(help=SWEEP))
    else:
        app.command("sweep", help=SWEEP)(lambda: None)
    profiles = new(help="Sites: what jobs there ask for.")
    profile_command.add(profiles)
    app.add_typer(profiles, name="profile")
    for name, command in {"payload": payload_command, **COMMANDS}.items():
        app.command(name)(guarded(command))
    return app


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


def main() -> None:
    ours, notes = from_mergekit.translated(sys.argv[1:])
    for note in notes:
        say(f"note: {note}")
    words = (word for word in ours if not word.startswith("-"))
    completes = "_MERGE_LAUNCH_COMPLETE" in os.environ
    try:
        build(None if completes else next(words, ""))(ours)
    except Exception:
        traceback.print_exc()
        say(REPORT)
        sys.exit(1)
