"""The application of merge-launch: its commands, and the report of a bug."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer

from merge_worker import __version__
from merge_worker.commands import COMMANDS, mergekit_options
from merge_worker.messages import printable

from . import backends
from .commands import jobs, profile
from .commands.check import check_command
from .commands.decorators import guarded, say, with_options
from .commands.payload import payload_command
from .commands.submit import add_backend
from .job.source import names_recipe
from .settings.groups import CheckOptions, MergeOptions, WorkerOptions

OTHERWISE = {"merge", "check", "search", "mergekit"}
"""Commands of merge-worker that merge-launch has in another form."""
REACHED = {each.name: each.help for each in COMMANDS if each.name not in OTHERWISE}
"""Commands of merge-worker that merge-launch runs as they are."""
MERGE_HELP = "Merge here and now (= local)."
SWEEP_HELP = "Make many merges: one recipe, many values."
SEARCH_HELP = "Search for the values of a recipe that give the best score."
EVAL_HELP = "Run benchmarks on a finished merge, and on its inputs, by lm-evaluation-harness."
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
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            no_args_is_help=True,
            context_settings={"help_option_names": ["-h", "--help"]},
            **settings,
        )

    app = new()
    app.callback()(top)
    renderer = new(add_completion=False, help="Print the job of a backend (= --dry-run).")
    for name in backends.names():
        add_backend(app, renderer, backends.get(name), command in (None, name, "render"))
    groups = (MergeOptions, WorkerOptions, CheckOptions) if command in (None, "check") else ()
    app.command("check", help=check_command.__doc__)(guarded(with_options(check_command, groups)))
    app.add_typer(renderer, name="render")
    groups_of_commands = (
        ("sweep", "sweep", SWEEP_HELP),
        ("search", "search", SEARCH_HELP),
        ("eval", "evaluate", EVAL_HELP),
    )
    for name, file, text in groups_of_commands:
        if command in (None, name):
            module = import_module(f".commands.{file}", __package__)
            module.add(app, new(help=text))
        else:
            app.command(name, help=text)(lambda: None)
    profiles = new(help="Show and check profiles: settings for the jobs of a site.")
    app.add_typer(profiles, name="profile")
    own = {"payload": payload_command, **jobs.COMMANDS}
    for target, commands in ((profiles, profile.COMMANDS), (app, own)):
        for name, function in commands.items():
            target.command(name)(guarded(function))
    for name, text in {"merge": MERGE_HELP, **REACHED}.items():
        app.command(name, help=f"{text[0].upper()}{text[1:].rstrip('.')}.")(lambda: None)
    return app


def with_local(words: list[str]) -> list[str]:
    """Return the words of a command with `local` for `merge`, and before a recipe alone."""
    first = words[0] if words else "-"
    if first == "merge":
        return ["local", *words[1:]]
    if first.startswith("-") or not names_recipe(first):
        return words
    app = build(first)
    names = [each.name for each in app.registered_commands]
    if first in [*names, *(each.name for each in app.registered_groups)]:
        return words
    others = ", ".join(name for name in backends.names() if name != "local")
    say(f"note: '{printable(first)}' is merged here, as by 'local'; as a job: {others}")
    return ["local", *words]


def main() -> None:
    """Run the command line; a bug prints its traceback and how to report it."""
    if sys.argv[1:] and sys.argv[1] in REACHED:
        from merge_worker.cli import entry

        entry("merge-launch")
    words, notes = mergekit_options.translated(sys.argv[1:])
    for note in notes:
        say(f"note: {note}")
    words = with_local(words)
    if words[:1] == ["eval"]:
        from .commands.evaluate import with_place

        words = with_place(words)
    command = next((word for word in words if not word.startswith("-")), "")
    completes = "_MERGE_LAUNCH_COMPLETE" in os.environ
    try:
        build(None if completes else command)(words)
    except Exception:
        traceback.print_exc()
        say(BUG)
        sys.exit(1)
