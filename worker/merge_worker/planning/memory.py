"""Memory of a merge, shared among processes and lanes, and the pieces that fit it."""

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
"""Elements that a lane writes at a time when one read is enough: the overhead of a piece (its
journal entry, its checksum, its compute slot) took a fifth of the processor at 2^19."""

LEAST_ELEMENTS = 1 << 19
"""Elements that a lane of a small merge writes at a time: requests of a MiB and more."""

MERGE_SHARE = 512
"""A piece is at most this part of the merge, which is how much of each lane's work a kill costs."""

PROCESS_BYTES = 128 << 20
"""Default memory of each process, where there are many."""

DEVICE_BYTES = 1 << 30
"""Default memory of each process where an accelerator computes: its blocks are larger."""

THREADS_EACH = 1
"""Threads of a process: two took as long as 1.5 processors, and 16 as long as one."""

DEVICE_THREADS_EACH = 4
"""Threads of a process where they wait for an accelerator as well."""

SMALL = 1 << 22
"""Elements to read of a merge that ends before other processes have begun."""

MOST_WAITING = 3
"""Lanes of a process that wait for the storage where each writes several results in a row: a lane
that writes five keeps the others from it five times as long."""

MOST_PROCESSES = 16
"""More than any storage keeps busy with what one processor computes; then threads are added."""

CORE_FLOPS = 25e9
"""Floating-point operations a second of one core in matrix methods (measured with AVX-512: 38e9 to
50e9)."""

LONG_S = 1800
"""Seconds of computation after which a plan warns."""


@dataclass(frozen=True)
class Memory:
    """Lanes, evenly shared out over `processes`, each with buffers of at most `lane_bytes`.

    `bound` is what all lanes take. A method that needs a whole tensor or a long row at once may
    exceed the memory asked for; the bound counts it, and `forced_by` names the tensor.
    """

    lanes: int
    lane_bytes: int
    bound: int
    forced_by: str | None = None
    processes: int = 1
    piece: int = LEAST_ELEMENTS  # elements, where one read is enough
    computing: int = 0  # lanes that compute at a time, while others wait for storage; 0: all
    large_reads: bool = False  # a piece of a source is read at once: each request takes long
    notes: tuple[str, ...] = ()

    @property
    def per_process(self) -> Memory:
        """The share of one process."""
        return replace(
            self,
            lanes=self.lanes // self.processes,
            bound=self.bound // self.processes,
            computing=-(-self.computing // self.processes),
            processes=1,
        )

    def piece_blocks(self, step: Step) -> int:
        """Return how many blocks of `step` one lane takes at a time."""
        return _piece_blocks(step, step_buffers(step), self.lane_bytes, self.piece)


def step_buffers(step: Step) -> BufferSize:
    """Return the buffers of a step: for each element of every source and result, and fixed ones."""
    block = max(1, min(step.grid.block, step.grid.count))
    sources = add_sizes(buffer_size(source) for source in step.sources)
    fixed = 2 * PAGE * step.results + block * step.scratch + step.held + sources.fixed
    return BufferSize(sources.per_element + step.result_bytes, fixed)


def budget(
    steps: Sequence[Step],
    memory_bytes: int | None,
    threads: int,
    accelerated: bool = False,
    reads_in_flight: int | None = None,
) -> Memory:
    """Share the memory among lanes: more lanes than threads, so that some wait for the storage.

    Each lane has one read in flight. Where storage answers late, `reads_in_flight` says how many.
    """
    processes = _processes(steps, threads, accelerated)
    default = max(DEFAULT_BYTES, processes * (DEVICE_BYTES if accelerated else PROCESS_BYTES))
    sizes = [(step, step_buffers(step)) for step in steps]
    needs = [(_lane_bytes(step, size, 1), step.name) for step, size in sizes]
    least, largest = max(needs, key=lambda need: need[0], default=(0, None))
    process_threads = threads // processes
    results = max((step.results for step in steps), default=1)
    waiting = max(1, process_threads // 4, min(MOST_WAITING, (results + 1) // 2))
    wanted = processes * (process_threads + waiting)
    if reads_in_flight is not None:
        processes = min(processes, reads_in_flight)
        wanted = reads_in_flight // processes * processes
    # Statistics come on top of the default, or large tensors would no longer be read at once.
    total = memory_bytes or default + wanted * max((step.held for step in steps), default=0)
    lanes = max(1, min(wanted, total // max(1, least)))
    processes = max(1, min(processes, lanes // 2))
    lanes -= lanes % processes
    lane_bytes = max(total // lanes, least)
    piece = sum(step.grid.count for step in steps) // MERGE_SHARE
    piece = max(LEAST_ELEMENTS, min(PIECE_ELEMENTS, piece))
    taken = [_lane_bytes(s, b, _piece_blocks(s, b, lane_bytes, piece)) for s, b in sizes]
    bound = lanes * max(taken, default=0)
    memory = Memory(
        lanes=lanes,
        lane_bytes=lane_bytes,
        bound=bound,
        forced_by=largest if bound > total else None,
        processes=processes,
        piece=piece,
        computing=0 if accelerated else threads,
        large_reads=reads_in_flight is not None,
    )
    return replace(memory, notes=_notes(steps, memory, threads))


def _processes(steps: Sequence[Step], threads: int, accelerated: bool) -> int:
    """Return how many processes share a merge."""
    per_process = DEVICE_THREADS_EACH if accelerated else THREADS_EACH
    sizes = [step.grid.count * step.reads for step in steps]
    # Statistics passes cannot be shared: each of two processes would read the whole tensor.
    largest = max((n for n, step in zip(sizes, steps, strict=True) if step.reads > 1), default=0)
    if sum(sizes) < SMALL or 2 * largest > sum(sizes):
        return 1
    return max(1, min(MOST_PROCESSES, threads // per_process))


def _lane_bytes(step: Step, size: BufferSize, blocks: int) -> int:
    """Return the bytes a lane takes for a piece of `blocks` blocks, scratch included."""
    block = min(step.grid.block, step.grid.count)
    return min(blocks * block, step.grid.count) * size.per_element + size.fixed


def _piece_blocks(step: Step, size: BufferSize, lane_bytes: int, piece: int) -> int:
    block = max(1, min(step.grid.block, step.grid.count))
    most = max(1, piece // block) if step.reads == 1 else max(1, step.grid.blocks)
    fitting = (lane_bytes - size.fixed) // (block * size.per_element)
    return max(1, min(most, fitting))


def _notes(steps: Sequence[Step], memory: Memory, threads: int) -> tuple[str, ...]:
    """Return a warning if the processor would compute for more than half an hour."""
    heavy = [step for step in steps if step.flops]
    flops = sum(step.flops for step in heavy)
    working = min(memory.lanes, threads)
    seconds = flops / CORE_FLOPS / working
    if seconds < LONG_S:
        return ()
    more = ""
    if working < threads:
        need = memory.bound // memory.lanes * threads
        more = f"; --memory {-(-need >> 30)}GiB lets {threads} threads work, not just {working}"
    method = next(step.method.name for step in heavy if step.method)
    return (
        f"{method} computes {flops:.1e} floating-point operations on "
        f"{counted(len(heavy), 'tensors')}: about {duration(seconds)} on "
        f"{counted(working, 'processor cores')}{more}; minutes on a GPU (--device)",
    )
