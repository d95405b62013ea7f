"""Several merges of the same inputs as one pass: what is read once serves all of their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..method import Block, MergePass
from ..planning.step import Piece, Step
from ..system.ranks import Rank
from ..tensors.source import TensorSource, bytes_read


@dataclass(frozen=True)
class Work:
    """The part of a step that is to be done here: runs of blocks that are not in the store yet."""

    number: int
    step: Step
    todo: tuple[Piece, ...]


FLOPS_PER_BYTE = 50
"""What a core computes in matrix methods while a byte is moved."""


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
    read = sum(bytes_read(source) for source in step.sources) * step.reads
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


@dataclass(frozen=True, slots=True)
class Member:
    """A step of one of the merges; `picks` are the places of its sources among the joint ones.

    None if it has all of them, in the same order.
    """

    result: int
    number: int
    step: Step
    picks: tuple[int, ...] | None = None

    def of(self, block: Block) -> Block:
        """The member's share of a joint block."""
        if self.picks is None:
            return block
        return Block([block.tensors[pick] for pick in self.picks], block.start, block.scratch)


@dataclass(frozen=True, slots=True)
class JointStep(Step):
    """Steps that are done on the same blocks; as a step it has all of their sources."""

    members: tuple[Member, ...] = ()

    @property
    def results(self) -> int:
        return len(self.members)

    @property
    def result_bytes(self) -> int:
        return sum(member.step.dtype.bytes for member in self.members)


def join_steps(works: Sequence[Sequence[Work]]) -> list[Work]:
    """The work of every merge, in the order of the first one that has a tensor.

    Steps join if they cut a tensor of the same name alike, and compute it or copy the same one.
    """
    groups: dict[tuple[object, ...], list[Member]] = {}
    todo: dict[tuple[object, ...], list[Piece]] = {}
    for result, own in enumerate(works):
        for work in own:
            step, grid = work.step, work.step.grid
            copied = step.sources if step.task is None else None
            key = (step.name, grid.count, grid.block, grid.row, copied)
            groups.setdefault(key, []).append(Member(result, work.number, step))
            todo.setdefault(key, []).extend(work.todo)
    return [
        Work(number, _joint(members), tuple(_union(todo[key])))
        for number, (key, members) in enumerate(groups.items())
    ]


def _joint(members: Sequence[Member]) -> JointStep:
    first, sources = members[0].step, members[0].step.sources
    if len(members) > 1:
        places: dict[TensorSource, int] = {}
        members = [
            replace(m, picks=tuple(places.setdefault(s, len(places)) for s in m.step.sources))
            for m in members
        ]
        sources = tuple(places)
    return JointStep(
        first.name, first.dtype, first.shape, sources, first.task, first.method, first.grid,
        max(m.step.reads for m in members), _scratch(members, len(sources)), first.shard,
        first.offset, sum(m.step.flops for m in members), tuple(members),
    )  # fmt: skip


def _scratch(members: Sequence[Member], sources: int) -> int:
    """Of the one that needs most, and for all sources in float32 where several share those."""
    most = max(member.step.scratch for member in members)
    return most + 4 * sources if len(members) > 1 else most


def shared(block: Block, finals: Sequence[MergePass]) -> Block:
    """The sources converted once, if that is what all of several members would do."""
    if len(finals) < 2 or any(final.accumulates_in != "float32" for final in finals):
        return block
    found = []
    for number, source in enumerate(block.tensors):
        wide = block.scratch.take(f"wide{number}", source.numel(), "float32").view(source.shape)
        found.append(wide.copy_(source))
    return Block(found, block.start, block.scratch)


def _union(runs: Sequence[Piece]) -> Iterator[Piece]:
    """Runs of blocks that cover the same ones, each once and in order."""
    first = stop = 0
    for run in sorted(runs, key=lambda run: run.first):
        if run.first > stop:
            if stop > first:
                yield Piece(first, stop - first)
            first = run.first
        stop = max(stop, run.first + run.blocks)
    if stop > first:
        yield Piece(first, stop - first)
