"""The task of computing gates: the plan, the prompts, and the means to read weights.

Vectors of prompts become gates by `directions`, whatever they are vectors of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.folder import Checkpoint
from ..checkpoint.reader import Files
from ..engine.lane import Lane
from ..engine.options import RunOptions
from ..errors import UsageError
from ..messages import printable
from ..planning.gates import GatePlan
from ..planning.plan import Plan
from ..system.signals import StopFlag
from ..tokenizer.files import SideFiles

TINY = 1e-8
"""Length below which a vector is zero."""


@dataclass(frozen=True)
class GateRequest:
    """Gates to compute. `options` hold the device and where warnings go; `stop` is set from outside
    to end early, after which any result is dropped."""

    plan: Plan
    gates: GatePlan
    files: Files
    options: RunOptions
    stop: StopFlag

    @property
    def base(self) -> Checkpoint:
        """The base of the mixture, whose hidden states the gates are made from."""
        return self.plan.models[0]

    @property
    def side_files(self) -> SideFiles:
        """The tokenizer's files."""
        return self.plan.tokenizer.side_files

    def lane(self) -> Lane:
        """Return a reader of ranges of tensors on the CPU, for one thread."""
        return Lane(torch.device("cpu"), self.files, staged=False)


def directions(vectors: Tensor, gates: GatePlan) -> Tensor:
    """Return gates of length 1 for vectors of prompts, centred over the experts if that is asked.

    `vectors` and the result are float32 [layers, rows, width]. Raises UsageError if one is zero.
    """
    vectors = vectors.to(torch.float32)
    if gates.center and gates.experts > 1:
        routed = vectors[:, : gates.experts]
        vectors = torch.cat([routed - routed.mean(1, keepdim=True), vectors[:, gates.experts :]], 1)
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    if bool((lengths < TINY).any()) or not bool(vectors.isfinite().all()):
        bad = ((lengths < TINY) | ~vectors.isfinite().all(-1, keepdim=True)).any(0).flatten()
        label = printable(gates.rows[int(bad.int().argmax())].label)
        raise UsageError(
            f"the prompts of expert {label} give no direction: they are those of its negative "
            f"prompts, or of all experts, or the base's weights are not finite\n"
            f"  give it other prompts, or choose gate_mode: random"
        )
    return vectors.div(lengths)
