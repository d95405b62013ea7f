"""The gates of a mixture as a plan knows them: a file that is made before weights are copied.

Gates are small, and computing them may take minutes. They are made once, before the first weight is
copied, into a file beside the output folder that a stopped merge and all ranks find again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..dtypes import BY_NAME
from ..tensors.source import StoredTensor
from .prompts import Prompt
from .shards import Output, safetensors_header

FLOAT32 = BY_NAME["F32"]


@dataclass(frozen=True)
class GateRow:
    """The gate of one expert: the label of its model, and its prompts."""

    label: str
    positive: tuple[Prompt, ...] = ()
    negative: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class GatePlan:
    """Gates to compute: a float32 matrix [rows, width] for each layer, one row for each expert.

    `names` are the router's tensors in the result, one for each layer, by which random numbers are
    drawn. If `shared_row`, the last row is the gate vector of the shared expert. With `center`, the
    mean over the experts (without the shared one) is taken off before the rows get length 1.
    `file` is where they are written, and depends on all that they depend on.
    """

    mode: str
    rows: tuple[GateRow, ...]
    names: tuple[str, ...]
    width: int
    std: float
    center: bool
    per_prompt: bool
    shared_row: bool
    seed: int
    file: Path = Path()

    @property
    def layers(self) -> int:
        return len(self.names)

    @property
    def experts(self) -> int:
        """Number of the experts that the router chooses from."""
        return len(self.rows) - self.shared_row

    @property
    def outputs(self) -> list[Output]:
        """The tensors of the file."""
        shape = (len(self.rows), self.width)
        return [Output(f"layers.{number}", FLOAT32, shape) for number in range(self.layers)]

    @property
    def header(self) -> bytes:
        """The bytes of the file before its tensors, which follow in order."""
        return safetensors_header(self.outputs)[0]

    @property
    def file_bytes(self) -> int:
        return len(self.header) + sum(output.nbytes for output in self.outputs)

    def digest(self, inputs: Sequence[object]) -> str:
        """Identify the gates by all that they depend on; `inputs` identify the base."""
        rows = [[row.positive, row.negative] for row in self.rows]
        facts = [self.mode, rows, self.names, self.width, self.std, self.center, self.per_prompt]
        text = json.dumps([*facts, self.shared_row, self.seed, *inputs], default=str)
        return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()

    def sources(self) -> list[StoredTensor]:
        """Return the tensors of the file: one [rows, width] for each layer."""
        _, offsets = safetensors_header(self.outputs)
        begin = len(self.header)
        return [
            StoredTensor(o.name, o.dtype, o.shape, str(self.file), begin + offset, o.nbytes)
            for o, offset in zip(self.outputs, offsets, strict=True)
        ]
