"""Shared parts of commands: words and options as values, notes, errors as lines and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from merge_worker.command_line.parser import Parser
from merge_worker.errors import WorkerError
from merge_worker.messages import print_line, relative_paths

from ..errors import LauncherError
from ..job.source import current_folder
from ..profiles.file import FILE_NAME
from ..settings.options import add_options

Run = Callable[[argparse.Namespace], int]
"""A command: its arguments -> its exit code. Raises LauncherError or WorkerError."""
WORDS = ("source", "path", "place", "job", "name_of_profile")


def say(text: str) -> None:
    """Print to stderr; paths below this folder are relative.

    Warnings and notes begin like those of the worker, all else with the name of the program.
    """
    program = "" if text.startswith(("warning: ", "note: ")) else "merge-launch: "
    print_line(f"{program}{as_typed(text)}", sys.stderr)


def as_typed(text: str) -> str:
    """Return a message with the paths below the current folder relative to it."""
    try:
        return relative_paths(text, current_folder(os.environ))
    except OSError:  # the folder was removed meanwhile
        return text


def emit(*lines: str) -> None:
    """Print lines about what was done. A reader that is gone, or a full disk, undoes none of it."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say("\n  ".join([f"warning: cannot print ({error.strerror}):", *lines]))


def guarded(run: Run, arguments: argparse.Namespace) -> int:
    """Run a command; print the errors that it raises, and return its exit code."""
    try:
        return run(arguments)
    except (LauncherError, WorkerError) as error:
        say(str(error) or type(error).__name__)
        return error.exit_code


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options, None where one was not given."""
    return {name: value for name, value in vars(arguments).items() if name not in WORDS}


def add_source(parser: Parser) -> None:
    """Add the SOURCE words of a merge."""
    parser.add_argument(
        "source", metavar="SOURCE", nargs="+", help="OUT MODEL MODEL… or RECIPE [OUT]"
    )


def add_settings(parser: Parser, groups: Sequence[type], hidden: Collection[str] = ()) -> None:
    """Add the options of the groups, and --profile."""
    add_options(parser, groups, hidden)
    text = f"a profile of {FILE_NAME}"
    parser.groups["site"].add_argument("--profile", metavar="PROFILE", help=text)


def add_json(parser: Parser) -> None:
    """Add --json, with the name `as_json`."""
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
