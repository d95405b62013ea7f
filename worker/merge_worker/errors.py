"""Errors that end a command, each kind with its exit code.

The text of an error names a place, a fact and a way out; only `cli` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .messages import printable


class WorkerError(Exception):
    """Base of all expected errors; any other exception is a bug."""

    exit_code = 1

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every fault in the text, for programs; the text has them one below the other."""
        faults: list[Fault] = []
        for line in str(self).splitlines():
            if line.startswith("  ") and faults:
                hint = f"{faults[-1].hint}\n{line.strip()}".strip()
                faults[-1] = faults[-1]._replace(hint=hint)
            else:
                place, colon, text = line.strip().partition(": ")
                faults.append(Fault(place, text) if colon else Fault("", line.strip()))
        return tuple(faults)


class Fault(NamedTuple):
    """A fault: the place (a line of the recipe, a file, a tensor), the fact, and the way out."""

    place: str
    text: str
    hint: str = ""


class UsageError(WorkerError):
    """The command or the recipe is wrong; nothing was touched."""

    exit_code = 2


class InputError(WorkerError):
    """An input is missing, damaged or does not fit the others."""

    exit_code = 3


class OutputError(WorkerError):
    """The output cannot be written, or already exists and differs."""

    exit_code = 4


class ResultError(WorkerError):
    """The result would be wrong (NaN or Inf in a merged tensor)."""

    exit_code = 5


class Stopped(WorkerError):
    """The run stopped before the end; the same command resumes it."""

    exit_code = 75


@contextmanager
def input_errors(where: object) -> Iterator[None]:
    """Turn an OSError while reading into an InputError of one line."""
    try:
        yield
    except OSError as error:
        place = printable(str(error.filename or where))
        raise InputError(f"{place}: {error.strerror or error}") from None
