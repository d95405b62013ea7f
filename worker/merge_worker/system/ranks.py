"""Rank and number of processes of a merge, from the environment variables of launchers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError

_VARIABLES = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("BEAKER_REPLICA_RANK", "BEAKER_REPLICA_COUNT"),
)


@dataclass(frozen=True)
class Rank:
    """Process `number` of `world` that share a merge, and only the file system."""

    number: int = 0
    world: int = 1


def from_environment(environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank set by the first launcher in the list. UsageError if it is invalid."""
    for number, world in _VARIABLES:
        if environment.get(number) and environment.get(world):
            try:
                rank = Rank(int(environment[number]), int(environment[world]))
            except ValueError:
                rank = Rank(-1, 0)
            if not 0 <= rank.number < rank.world:
                raise UsageError(
                    f"{number}={environment[number]} with {world}={environment[world]} "
                    f"is not a rank; unset both for a run of one process"
                )
            return rank
    return Rank()
