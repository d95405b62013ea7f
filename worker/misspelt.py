"""What is said of a command line that argparse does not understand."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Protocol

from .errors import nearest


class Commands(Protocol):
    """A parser that knows its commands, and which of them was asked."""

    prog: str
    commands: Mapping[str, argparse.ArgumentParser]
    asked: str


def explained(parser: Commands, message: str) -> str:
    """The message of argparse with the nearest right word, and where to read on."""
    text, prog = message, parser.prog
    if found := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose .*\)", message):
        choices = list(parser.commands) or re.findall(r"[\w-]+", message.rpartition("from ")[2])
        hint = nearest(found[2], choices)
        what = "no command" if found[1] == "COMMAND" else f"{found[1]}: no"
        text = f"{what} '{found[2]}'{hint}; one of {', '.join(choices)}"
    elif message.startswith("unrecognized arguments: "):
        asked = parser.commands[parser.asked]
        word, prog = message.partition(": ")[2].split()[0], asked.prog
        known = re.findall("--[a-z0-9-]+", asked.format_usage())
        text = f"no option {word}{nearest(word.partition('=')[0], known)}"
    where = prog.partition(" ")[2]
    return f"{where}{': ' if where else ''}{text}\n  see {prog} --help"
