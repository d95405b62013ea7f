"""A program that runs merges inside its own process, and stays in charge of that process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """The functions of a program that get what a command would print.

    Its signal handlers are left alone, and nothing is printed. `progress` gets the bytes written so
    far and in all, from a thread of the merge; an error that it raises stops the merge. Processes
    are forked only if it `may_fork`: a fork copies no other thread of the program.
    """

    warn: Callable[[str], object]
    progress: Callable[[int, int], object] | None = None
    may_fork: bool = False
