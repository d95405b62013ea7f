"""What the launcher tells its user when it cannot go on; `cli` alone prints it.

Faults of recipes and inputs are the worker's errors, with the same exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence


class LauncherError(Exception):
    """Base of all errors that are answers, not bugs."""

    exit_code = 1


class UsageError(LauncherError):
    """The command or a setting is wrong; nothing was touched."""

    exit_code = 2


class OutputError(LauncherError):
    """A file of the job cannot be written."""

    exit_code = 4


class ClusterError(LauncherError):
    """The cluster refused or cannot be reached. `unanswered`: nobody knows which."""

    exit_code = 6
    unanswered = False


def in_one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


def refuse(faults: Sequence[str]) -> None:
    """All faults at once, or none."""
    if faults:
        raise UsageError("\n  ".join(faults))
