"""A step of a plan: one output tensor, where its parts come from and where they go."""

from __future__ import annotations

from dataclasses import dataclass

from .cut import Grid, Piece
from .dtypes import DType
from .methods._define import Method, Task
from .origin import Origin


@dataclass(frozen=True, slots=True)
class Step:
    """One output tensor. `task` is None where its bytes are copied from the first source."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[Origin, ...]
    task: Task | None
    method: Method | None  # who does the task; not always the recipe's: copies may be converted
    grid: Grid
    reads: int
    scratch: int  # bytes per element of the block at work
    shard: int
    offset: int
    flops: int = 0  # beyond what reading hides

    @property
    def result_bytes(self) -> int:
        """Bytes of one element of what is written."""
        return self.dtype.bytes

    @property
    def results(self) -> int:
        """How many results are made at once."""
        return 1

    def place(self, piece: Piece) -> int:
        """Where the bytes of a piece begin in the shard."""
        return self.offset + piece.first * self.grid.block * self.dtype.bytes
