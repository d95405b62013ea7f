"""Rank and number of processes that share a merge: asked for by --ranks, never assumed.

The variables that launchers set are inherited by all that they start: by a batch script that calls
the worker once, and by a program that a rank of something else runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..messages import print_line
from ..units import parse_duration

_VARIABLES = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("BEAKER_REPLICA_RANK", "BEAKER_REPLICA_COUNT"),
)


PATIENCE = "10s"
"""How long `--ranks auto` waits for ranks that have not begun."""


@dataclass(frozen=True)
class Rank:
    """Process `number` of `world` that share a merge, and only the file system."""

    number: int = 0
    world: int = 1


def rank_of(asked: str | None, environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank that `--ranks` asks for; without it, say which variables are ignored."""
    if asked is not None:
        return from_environment(environment)
    for number, world in _set_in(environment):
        if environment[world] not in ("0", "1"):
            words = f"{number}={environment[number]} and {world}={environment[world]}"
            print_line(
                f"note: {words} are ignored, this process makes the whole merge; "
                f"--ranks auto makes it one of several",
                sys.stderr,
            )
            break
    return Rank()


def from_environment(environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank set by the first launcher in the list. UsageError if it is invalid."""
    for number, world in _set_in(environment):
        try:
            rank = Rank(int(environment[number]), int(environment[world]))
        except ValueError:
            rank = Rank(-1, 0)
        if not 0 <= rank.number < rank.world:
            raise UsageError(
                f"{number}={environment[number]} with {world}={environment[world]} "
                f"is not a rank; unset both, or leave --ranks out"
            )
        return rank
    return Rank()


def patience_s(asked: str | None) -> float:
    """Return the seconds to wait for ranks that have not begun: `auto`, or `auto:10m`."""
    return parse_duration((asked or "").partition(":")[2] or PATIENCE)


def _set_in(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return (pair for pair in _VARIABLES if all(environment.get(name) for name in pair))
