"""Pages and errors of a command line: the list of commands, and messages with the nearest word."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..errors import UsageError
from ..messages import nearest, printable

SHORTEST, WIDEST = 40, 100
"""Columns of the help, where the terminal is narrower or wider."""
OPTIONS = (
    ("-h, --help", "print this help, or that of a command"),
    ("--version", "print the version"),
    ("--print-completion SHELL", "print what bash, zsh or fish needs to complete words"),
)
"""Options of both programs, in place of a command."""


def columns() -> int:
    """Return the columns of a page of help in this terminal."""
    return min(max(shutil.get_terminal_size().columns - 1, SHORTEST), WIDEST)


def explain(program: str, message: str) -> str:
    """Rewrite a message of argparse: the nearest valid word, and where to read on."""
    if match := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose .*\)", message):
        option, word = match.groups()
        option = option.rpartition("/")[2]
        choices = re.findall(r"[\w-]+", message.rpartition("from ")[2])
        message = f"{option}: unknown value '{word}'{nearest(word, choices)}"
        message += f"; one of {', '.join(choices)}"
    place = program.partition(" ")[2]
    return f"{place}{': ' if place else ''}{message}\n  see {program} --help"


def unknown_command(program: str, word: str, names: Iterable[str]) -> UsageError:
    """Return the error for an unknown command, with the nearest of `names`."""
    known = list(names)
    hint = nearest(word, known) or f"; one of {', '.join(known)}"
    return UsageError(explain(program, f"unknown command '{printable(word)}'{hint}"))


def page_of_commands(
    program: str,
    description: str,
    groups: Mapping[str, Sequence[tuple[str, str]]],
    options: Sequence[tuple[str, str]],
    word: str = "COMMAND",
) -> str:
    """Return the help of a program: a line for each command, in groups, none cut off."""
    groups = {**groups, **({"options": options} if options else {})}
    width = columns()
    names = [name for rows in groups.values() for name, _ in rows if not name.startswith("-")]
    widest = max(map(len, names)) + 4
    lines = [f"usage: {program} {word} …", "", *textwrap.wrap(description, width)]
    for title, rows in groups.items():
        lines += ["", f"{title}:", *_rows(rows, widest, width)]
    lines += ["", f"'{program} {word} --help' shows its options."]
    return "\n".join(lines)


def _rows(rows: Iterable[tuple[str, str]], indent: int, width: int) -> Iterator[str]:
    for name, text in rows:
        if len(name) + 4 > indent:
            yield f"  {name}"
            name = ""
        yield from textwrap.wrap(
            text,
            width,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
