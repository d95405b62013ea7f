"""Work of a rank, and the steps of several merges joined so that inputs are read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..method import Block, MergePass
from ..planning.step import Piece, Step
from ..system.ranks import Rank


@dataclass(frozen=True)
class Work:
    """The part of a step to do in this rank: runs of blocks that are not written yet."""

    number: int
    step: Step
    todo: tuple[Piece, ...]


FLOPS_PER_BYTE = 50
"""Floating-point operations of a core in matrix methods in the time of moving a byte."""


def share(steps: Sequence[Step], rank: Rank, done: Mapping[int, Sequence[Piece]]) -> list[Work]:
    """Return the work of `rank`: an equal run of the whole cost, without the finished pieces.

    The cut depends on the plan only, so ranks agree on it without communication.
    """
    total = sum(cost(step) for step in steps)
    first = total * rank.number // rank.world
    last = total * (rank.number + 1) // rank.world
    work: list[Work] = []
    position = 0
    for number, step in enumerate(steps):
        size, blocks = cost(step), step.grid.blocks
        if position < last and position + size > first and blocks:
            per_block = size / blocks
            begin = max(0, -int(-(first - position) // per_block))
            end = min(blocks, -int(-(last - position) // per_block))
            todo = tuple(_without(Piece(begin, end - begin), done.get(number, ())))
            if todo:
                work.append(Work(number, step, todo))
        position += size
    return work


def cost(step: Step) -> int:
    """Return the bytes moved for a step, plus those that could be moved while it computes."""
    moved = step.bytes_read * step.reads + step.grid.count * step.dtype.bytes
    return moved + step.flops // FLOPS_PER_BYTE


def _without(run: Piece, done: Sequence[Piece]) -> list[Piece]:
    """Return the parts of `run` that no piece of `done` covers."""
    parts: list[tuple[int, int]] = []
    position, stop = run.first, run.first + run.blocks
    for piece in sorted(done, key=lambda piece: piece.first):
        parts.append((position, min(piece.first, stop)))
        position = max(position, piece.first + piece.blocks)
    parts.append((position, stop))
    return [Piece(first, last - first) for first, last in parts if first < last]


@dataclass(frozen=True, slots=True)
class Member:
    """A step of one of the merges, and the indices of its sources among the joint ones.

    `source_indices` is None for all sources in the same order.
    """

    result: int
    number: int
    step: Step
    source_indices: tuple[int, ...] | None = None

    def of(self, block: Block) -> Block:
        """Return the member's sources of a joint block."""
        if self.source_indices is None:
            return block
        tensors = [block.tensors[index] for index in self.source_indices]
        return Block(tensors, block.start, block.scratch)


@dataclass(frozen=True, slots=True)
class JointStep(Step):
    """Steps of several merges computed on the same blocks; `sources` are those of all of them."""

    members: tuple[Member, ...] = ()

    @property
    def results(self) -> int:
        return len(self.members)

    @property
    def result_bytes(self) -> int:
        return sum(member.step.dtype.bytes for member in self.members)


def join_steps(works: Sequence[Sequence[Work]]) -> list[Work]:
    """Join the work of several merges, in the order of the first one that has a tensor.

    Steps join if their tensors have one name and grid, and are computed or copies of one source.
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
        Work(number, _join(members), tuple(_union(todo[key])))
        for number, (key, members) in enumerate(groups.items())
    ]


def _join(members: Sequence[Member]) -> JointStep:
    first, sources = members[0].step, members[0].step.sources
    scratch = max(member.step.scratch for member in members)
    if len(members) > 1:
        sources = tuple(dict.fromkeys(s for member in members for s in member.step.sources))
        index = {source: number for number, source in enumerate(sources)}
        members = [
            replace(m, source_indices=tuple(index[s] for s in m.step.sources)) for m in members
        ]
        scratch += 4 * len(sources)  # float32 copies, which the members share
    return JointStep(
        name=first.name,
        dtype=first.dtype,
        shape=first.shape,
        sources=sources,
        task=first.task,
        method=first.method,
        grid=first.grid,
        reads=max(member.step.reads for member in members),
        scratch=scratch,
        shard=first.shard,
        offset=first.offset,
        flops=sum(member.step.flops for member in members),
        held=sum(member.step.held for member in members),
        members=tuple(members),
    )


def shared(block: Block, finals: Sequence[MergePass]) -> Block:
    """Convert the sources to float32 once, if all of several members would do so."""
    if len(finals) < 2 or any(final.accumulates_in != "float32" for final in finals):
        return block
    tensors = []
    for number, source in enumerate(block.tensors):
        wide = block.scratch.take(f"wide{number}", source.numel(), "float32").view(source.shape)
        tensors.append(wide.copy_(source))
    return Block(tensors, block.start, block.scratch)


def _union(runs: Sequence[Piece]) -> list[Piece]:
    """Return runs that cover the blocks of all `runs` once and in order."""
    spans: list[list[int]] = []
    for run in sorted(runs, key=lambda run: run.first):
        if not spans or run.first > spans[-1][1]:
            spans.append([run.first, run.first])
        spans[-1][1] = max(spans[-1][1], run.first + run.blocks)
    return [Piece(first, stop - first) for first, stop in spans]
