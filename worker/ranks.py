"""Which share of a merge this process takes, from the environment that launchers give."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cut import Piece
from .errors import UsageError
from .origin import moved
from .readahead import Work
from .step import Step

_VARIABLES = (
    ("RANK", "WORLD_SIZE"),  # torchrun
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("BEAKER_REPLICA_RANK", "BEAKER_REPLICA_COUNT"),
)


FLOPS_PER_BYTE = 50
"""What a core computes in matrix methods while a byte is moved."""


@dataclass(frozen=True)
class Rank:
    """`number` of `world` processes that share one merge and nothing but the file system."""

    number: int = 0
    world: int = 1


def from_environment(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that the first launcher in the list has set. UsageError if it makes no sense."""
    for number, world in _VARIABLES:
        if environment.get(number) and environment.get(world):
            try:
                rank = Rank(int(environment[number]), int(environment[world]))
            except ValueError:
                rank = Rank(-1, 0)
            if not 0 <= rank.number < rank.world:
                raise UsageError(
                    f"{number}={environment[number]} with {world}={environment[world]} "
                    f"is no rank; unset both for a run of one process"
                )
            return rank
    return Rank()


def share(steps: Sequence[Step], rank: Rank, done: Mapping[int, Sequence[Piece]]) -> list[Work]:
    """The work of `rank`: an equal run of the whole cost, less what is done already.

    The cut depends on the plan only, so ranks agree on it without talking.
    """
    total = sum(cost(step) for step in steps)
    first = total * rank.number // rank.world
    last = total * (rank.number + 1) // rank.world
    found: list[Work] = []
    position = 0
    for number, step in enumerate(steps):
        size, blocks = cost(step), step.grid.blocks
        if position < last and position + size > first and blocks:
            per_block = size / blocks
            begin = max(0, -int(-(first - position) // per_block))
            end = min(blocks, -int(-(last - position) // per_block))
            todo = tuple(_without(Piece(begin, end - begin), done.get(number, ())))
            if todo:
                found.append(Work(number, step, todo))
        position += size
    return found


def cost(step: Step) -> int:
    """Bytes moved for a step, a fair measure while storage is the limit, and bytes that could be
    moved in the time of long computations."""
    read = sum(moved(source) for source in step.sources) * step.reads
    return read + step.grid.count * step.dtype.bytes + step.flops // FLOPS_PER_BYTE


def _without(run: Piece, done: Sequence[Piece]) -> list[Piece]:
    """The parts of `run` that no piece of `done` covers."""
    parts: list[Piece] = []
    position, stop = run.first, run.first + run.blocks
    for piece in sorted(done, key=lambda p: p.first):
        if piece.first > position:
            parts.append(Piece(position, min(piece.first, stop) - position))
        position = max(position, piece.first + piece.blocks)
        if position >= stop:
            break
    if position < stop:
        parts.append(Piece(position, stop - position))
    return [part for part in parts if part.blocks > 0]
