"""The application of merge-launch: its commands, and the report of a bug."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer

from merge_worker import __version__
from merge_worker.commands import mergekit_options

from . import backends
from .commands import jobs, profile
from .commands.check import check_command
from .commands.decorators import guarded, say, with_options
from .commands.payload import payload_command
from .commands.submit import add_backend
from .settings.groups import CheckOptions, MergeOptions, WorkerOptions

SWEEP_HELP = "Make many merges: one recipe, many values."
SEARCH_HELP = "Search for the values of a recipe that give the best score."
BUG = "This is a bug of merge-launch. Please report it with the lines above and the command."


def print_version(requested: bool) -> None:
    if requested:
        print(f"merge-launch {__version__}")
        raise typer.Exit


def top(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Merge model checkpoints, here or as one cluster job."""


def build(command: str | None = None) -> typer.Typer:
    """Build the application.

    With `command`, that command alone gets its options: to create those of all commands takes
    0.1 s, and the help of the application shows one line for each.
    """

    def new(**settings: Any) -> typer.Typer:
        return typer.Typer(
            rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, **settings
        )

    app = new()
    app.callback()(top)
    renderer = new(add_completion=False, help="Print the job of a backend (= --dry-run).")
    for name in backends.names():
        add_backend(app, renderer, backends.get(name), command in (None, name, "render"))
    groups = (MergeOptions, WorkerOptions, CheckOptions) if command in (None, "check") else ()
    app.command("check", help=check_command.__doc__)(guarded(with_options(check_command, groups)))
    app.add_typer(renderer, name="render")
    for name, text in (("sweep", SWEEP_HELP), ("search", SEARCH_HELP)):
        if command in (None, name):
            module = import_module(f".commands.{name}", __package__)
            module.add(app, new(help=text))
        else:
            app.command(name, help=text)(lambda: None)
    profiles = new(help="Show and check profiles: settings for the jobs of a site.")
    app.add_typer(profiles, name="profile")
    own = {"payload": payload_command, **jobs.COMMANDS}
    for target, commands in ((profiles, profile.COMMANDS), (app, own)):
        for name, function in commands.items():
            target.command(name)(guarded(function))
    return app


def main() -> None:
    """Run the command line; a bug prints its traceback and how to report it."""
    words, notes = mergekit_options.translated(sys.argv[1:])
    for note in notes:
        say(f"note: {note}")
    command = next((word for word in words if not word.startswith("-")), "")
    completes = "_MERGE_LAUNCH_COMPLETE" in os.environ
    try:
        build(None if completes else command)(words)
    except Exception:
        traceback.print_exc()
        say(BUG)
        sys.exit(1)
