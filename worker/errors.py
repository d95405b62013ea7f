"""What the worker tells its user when it cannot go on, each kind with its exit code.

The text of an error names a place, a fact and a way out; `cli` alone prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

ONE = {"are": "is", "have": "has", "differ": "differs", "match": "matches", "take": "takes"}
"""Verbs of one thing, by those of several."""


class WorkerError(Exception):
    """Base of all errors that are answers, not bugs."""

    exit_code = 1


class UsageError(WorkerError):
    """The command or the recipe is wrong; nothing was touched."""

    exit_code = 2


class InputError(WorkerError):
    """An input is missing, damaged or does not fit the others."""

    exit_code = 3


class OutputError(WorkerError):
    """The output cannot be written, or is there already and differs."""

    exit_code = 4


class ResultError(WorkerError):
    """The result would be wrong (NaN or Inf in a merged tensor)."""

    exit_code = 5


class Stopped(WorkerError):
    """Stopped before the end; the same command continues."""

    exit_code = 75


@contextmanager
def input_errors(where: object) -> Iterator[None]:
    """Turns the system's refusals while reading into one line."""
    try:
        yield
    except OSError as error:
        place = printable(str(error.filename or where))
        raise InputError(f"{place}: {error.strerror or error}") from None


def nearest(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'dare_ties'?)`, or nothing when no allowed word is near."""
    plain = {name.replace("-", "_").lower(): name for name in allowed}
    found = get_close_matches(word.replace("-", "_").lower(), plain, n=1, cutoff=0.6)
    return f" (did you mean '{plain[found[0]]}'?)" if found else ""


def first_names(names: Iterable[str], limit: int = 3) -> str:
    """`a, b, c and 4 more`: enough to recognise the pattern, never a flood."""
    listed = list(names)
    shown = ", ".join(printable(name) for name in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def counted(count: int, words: str) -> str:
    """`3 tensors are missing`, `1 tensor is missing`: `words` are those for several."""
    text = f" {words} "
    if count == 1:
        text = text.replace("s ", " ", 1)
        for several, one in ONE.items():
            text = text.replace(f" {several} ", f" {one} ")
    return f"{count}{text}"[:-1]


def printable(text: str) -> str:
    """Text from a file or the user without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
