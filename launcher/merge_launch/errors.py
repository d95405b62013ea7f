"""Errors of the launcher, with the exit codes of merge-launch.

Faults of recipes and inputs are the worker's errors, with the same exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence


class LauncherError(Exception):
    """The base of all errors with a cause outside merge-launch: they are printed as lines."""

    exit_code = 1


class UsageError(LauncherError):
    """The command or a setting is wrong; nothing was changed."""

    exit_code = 2


class OutputError(LauncherError):
    """A file of the job cannot be written."""

    exit_code = 4


class EvaluationError(LauncherError):
    """An evaluation ended without results, or with ones that cannot be read."""

    exit_code = 5


class ClusterError(LauncherError):
    """The cluster refused or cannot be reached.

    `unanswered` is true if it may have done what it was asked to.
    """

    exit_code = 6
    unanswered = False


def in_one_line(error: Exception) -> str:
    """Return the text of an error without line breaks."""
    return "; ".join(line.strip() for line in str(error).splitlines())


def refuse(faults: Sequence[str]) -> None:
    """Raise UsageError with every fault, if there are any."""
    if faults:
        raise UsageError("\n  ".join(faults))
