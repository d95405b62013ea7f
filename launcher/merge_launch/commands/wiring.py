"""How a function becomes a command: options from dataclasses, errors as lines, exit codes."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from merge_worker.errors import WorkerError

from ..errors import LauncherError
from ..profiles import layers
from ..profiles.file import FILE_NAME
from ..settings.options import parameters

SOURCE = "OUT MODEL MODEL…, or RECIPE.yml [OUT]"

Command = Callable[..., int]


def say(text: str) -> None:
    print(f"merge-launch: {text}", file=sys.stderr)


def guarded(command: Command) -> Callable[..., NoReturn]:
    """The one printer of errors: a few lines and an exit code for what is an answer."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = command(*args, **kwargs)
        except (LauncherError, WorkerError) as error:
            say(str(error) or type(error).__name__)
            code = error.exit_code
        raise typer.Exit(code)

    return run


SOURCES = inspect.Parameter(
    "source",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    annotation=Annotated[list[str], typer.Argument(help=SOURCE, metavar="SOURCE")],
)


def with_options(
    command: Callable[[Any, dict[str, Any]], int],
    groups: tuple[type, ...],
    words: inspect.Parameter = SOURCES,
) -> Command:
    """`command(source, given)` with SOURCE words, or others, and the options of the groups."""

    def run(**given: Any) -> int:
        return command(given.pop(words.name), given)

    which = inspect.Parameter(
        "profile",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[
            str | None,
            typer.Option(
                help=f"a profile of {FILE_NAME}", metavar="NAME", autocompletion=layers.complete
            ),
        ],
    )
    signature = inspect.Signature([words, *parameters(groups), which])
    # Public hooks of inspect and typing, which is where typer looks.
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return run
