"""The commands of merge-launch: they read words, call the parts and print what comes of it."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from merge_worker import __version__
from merge_worker.commands import mergekit_options

from . import backends
from .commands import profile
from .commands.check import check
from .commands.jobs import COMMANDS
from .commands.payload import payload_command
from .commands.submit import add_backend
from .commands.wiring import guarded, say, with_options
from .settings.groups import CheckOptions, MergeOptions, WorkerOptions

SWEEP = "Make many merges: one recipe, many values."
REPORT = "This is a bug of merge-launch. Please report it with the lines above and the command."


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
        from .commands import sweep

        sweep.add(app, new(help=SWEEP))
    else:
        app.command("sweep", help=SWEEP)(lambda: None)
    profiles = new(help="Sites: what jobs there ask for.")
    profile.add(profiles)
    app.add_typer(profiles, name="profile")
    for name, command in {"payload": payload_command, **COMMANDS}.items():
        app.command(name)(guarded(command))
    return app


def main() -> None:
    ours, notes = mergekit_options.translated(sys.argv[1:])
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
