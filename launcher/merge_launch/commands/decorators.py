"""Decorators of commands: options from dataclasses, errors as lines and exit codes."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from merge_worker.errors import WorkerError
from merge_worker.messages import print_line

from ..errors import LauncherError
from ..profiles.file import FILE_NAME, complete
from ..settings.options import parameters

Command = Callable[..., int]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def say(text: str) -> None:
    """Print a note, a warning or an error to stderr, with control characters escaped."""
    print_line(f"merge-launch: {text}", sys.stderr)


def emit(*lines: str) -> None:
    """Print lines about what was done. A reader that is gone, or a full disk, undoes none of it."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say("\n  ".join([f"warning: cannot print ({error.strerror}):", *lines]))


def guarded(command: Command) -> Callable[..., NoReturn]:
    """Print the errors that a command raises, and end with its exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = command(*args, **kwargs)
        except (LauncherError, WorkerError) as error:
            say(str(error) or type(error).__name__)
            code = error.exit_code
        raise typer.Exit(code)

    return run


SOURCE = inspect.Parameter(
    "source",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    annotation=Annotated[
        list[str], typer.Argument(help="OUT MODEL MODEL…, or RECIPE.yml [OUT]", metavar="SOURCE")
    ],
)
PROFILE = inspect.Parameter(
    "profile",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Option(help=f"a profile of {FILE_NAME}", metavar="NAME", autocompletion=complete),
    ],
)


def with_options(
    command: Callable[[Any, dict[str, Any]], int],
    groups: tuple[type, ...],
    argument: inspect.Parameter = SOURCE,
) -> Command:
    """Turn `command(source, given)` into a function with the options of the groups.

    `argument` is the positional argument: the SOURCE words unless the command takes another.
    """

    def run(**given: Any) -> int:
        return command(given.pop(argument.name), given)

    signature = inspect.Signature([argument, *parameters(groups), PROFILE])
    # Public hooks of inspect and typing, which is where typer looks.
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return run
