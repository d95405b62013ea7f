"""How long mathematics takes where it outweighs reading: estimate, and warning before hours."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import counted
from .memory import Memory
from .step import Step
from .units import duration

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
