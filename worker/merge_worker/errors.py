"""What the worker tells its user when it cannot go on, each kind with its exit code.

The text of an error names a place, a fact and a way out; `cli` alone prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .messages import printable


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
