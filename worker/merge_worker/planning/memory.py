"""How much memory a merge may use, and what follows for lanes and pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..messages import counted
from ..tensors.source import BufferSize, add_sizes, buffer_size
from ..units import duration
from .shards import PAGE
from .step import Step

DEFAULT_BYTES = 512 << 20
"""Enough to run at full speed: more buffers fall out of the caches, and gain nothing."""

PIECE_ELEMENTS = 1 << 21
"""Elements that a lane writes at a time when one read is enough: what comes with each piece (its
journal, its checksum, its turn among threads) took a fifth of the processor at 2^19."""

LEAST_ELEMENTS = 1 << 19
"""The same of small merges: requests of a MiB and more."""

MERGE_SHARE = 512
"""A piece is at most this part of the merge, which is what a kill costs of each lane's work."""

PROCESS_BYTES = 128 << 20
"""The same for each process, where there are many."""

DEVICE_BYTES = 1 << 30
"""The same where an accelerator computes: its blocks are larger."""

THREADS_EACH = 1
"""Of one process: two of one took as long as 1.5 processors, and 16 as long as one."""

DEVICE_THREADS_EACH = 4
"""The same where they wait for an accelerator as well."""

SMALL = 1 << 22
"""Elements to read of a merge that is over before processes have begun."""

MOST_WAITING = 3
"""Lanes of a process that wait for the storage where each writes several results in a row: one that
writes five keeps the others from it five times as long."""

MOST_PROCESSES = 16
"""More than any storage keeps busy with what one processor computes; then threads are added."""


@dataclass(frozen=True)
class Memory:
    """`lanes` threads, each with buffers of at most `lane_bytes`; `bound` is what all of them take.

    They are shared out evenly over `processes`.

    A method that needs a whole tensor (or a long row) at once may exceed what was asked for; the
    bound counts it, and `forced_by` names the tensor.
    """

    lanes: int
    lane_bytes: int
    bound: int
    forced_by: str | None = None
    processes: int = 1
    piece: int = LEAST_ELEMENTS  # elements, where one read is enough
    computing: int = 0  # so many lanes at a time, others wait for the storage; 0: all

    @property
    def per_process(self) -> Memory:
        """One process' part."""
        share = self.processes
        return replace(
            self,
            lanes=self.lanes // share,
            bound=self.bound // share,
            computing=-(-self.computing // share),
            processes=1,
        )

    def piece_blocks(self, step: Step) -> int:
        """Blocks of `step` that one lane takes at a time."""
        return _piece_blocks(step, held(step), self.lane_bytes, self.piece)


def held(step: Step) -> BufferSize:
    """Buffer bytes of one element, every source and the result; and those of any number."""
    block = max(1, min(step.grid.block, step.grid.count))
    sources = add_sizes(buffer_size(source) for source in step.sources)
    fixed = 2 * PAGE * step.results + block * step.scratch + sources.fixed
    return BufferSize(sources.per_element + step.result_bytes, fixed)


def budget(
    steps: Sequence[Step], memory_bytes: int | None, threads: int, accelerated: bool = False
) -> Memory:
    """Share the memory among lanes: more lanes than threads, so that some wait for the storage."""
    processes = _processes(steps, threads, accelerated)
    usual = max(DEFAULT_BYTES, processes * (DEVICE_BYTES if accelerated else PROCESS_BYTES))
    total = memory_bytes or usual
    rooms = [(step, held(step)) for step in steps]
    least, largest = 0, None
    for step, room_of in rooms:
        need = _lane_bytes(step, room_of, 1)
        if need > least:
            least, largest = need, step.name
    each = threads // processes
    results = max((step.results for step in steps), default=1)
    waiting = max(1, each // 4, min(MOST_WAITING, (results + 1) // 2))
    wanted = processes * (each + waiting)
    lanes = max(1, min(wanted, total // max(1, least)))
    processes = max(1, min(processes, lanes // 2))
    lanes -= lanes % processes
    share = max(total // lanes, least)
    piece = sum(step.grid.count for step in steps) // MERGE_SHARE
    piece = max(LEAST_ELEMENTS, min(PIECE_ELEMENTS, piece))
    taken = max((_lane_bytes(s, r, _piece_blocks(s, r, share, piece)) for s, r in rooms), default=0)
    bound = lanes * taken
    forced_by, computing = largest if bound > total else None, 0 if accelerated else threads
    return Memory(lanes, share, bound, forced_by, processes, piece, computing)


def _processes(steps: Sequence[Step], threads: int, accelerated: bool) -> int:
    """How many processes share a merge."""
    each = DEVICE_THREADS_EACH if accelerated else THREADS_EACH
    sizes = [step.grid.count * step.reads for step in steps]
    # What is looked at first cannot be shared: two would look at all of it.
    largest = max((n for n, step in zip(sizes, steps, strict=True) if step.reads > 1), default=0)
    if sum(sizes) < SMALL or 2 * largest > sum(sizes):
        return 1
    return max(1, min(MOST_PROCESSES, threads // each))


def _lane_bytes(step: Step, room_of: BufferSize, blocks: int) -> int:
    """What a lane takes for a piece of that many blocks, scratch included."""
    block = min(step.grid.block, step.grid.count)
    return min(blocks * block, step.grid.count) * room_of.per_element + room_of.fixed


def _piece_blocks(step: Step, room_of: BufferSize, lane_bytes: int, piece: int) -> int:
    block = max(1, min(step.grid.block, step.grid.count))
    most = max(1, piece // block) if step.reads == 1 else max(1, step.grid.blocks)
    fitting = (lane_bytes - room_of.fixed) // (block * room_of.per_element)
    return max(1, min(most, fitting))


# MERGED How long mathematics takes where it outweighs reading: estimate, and warning before hours.


CORE_FLOPS = 25e9
"""A second of one processor core in matrix methods (measured: 38e9 to 50e9 with AVX-512)."""

LONG_S = 1800


def notes(steps: Sequence[Step], memory: Memory, threads: int) -> list[str]:
    """A line if the processor would be at it for more than half an hour."""
    heavy = [step for step in steps if step.flops]
    flops = sum(step.flops for step in heavy)
    working = min(memory.lanes, threads)
    seconds = flops / CORE_FLOPS / working
    if seconds < LONG_S:
        return []
    more = ""
    if working < threads:
        need = memory.bound // memory.lanes * threads
        more = f"; --memory {-(-need >> 30)}GiB lets {threads} threads work, not just {working}"
    method = next(step.method.name for step in heavy if step.method)
    return [
        f"{method} computes {flops:.1e} floating-point operations on "
        f"{counted(len(heavy), 'tensors')}: about "
        f"{duration(seconds)} on {counted(working, 'processor cores')}{more}; "
        f"minutes on a GPU (--device)"
    ]
