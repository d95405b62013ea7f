"""Gates of mixtures of experts: computed once, before weights are copied, and written to a file.

A way to compute them is a row of MODES. All ranks of a merge, and the run after a stopped one, take
the file that was there first, so that they cannot differ.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing, suppress

import torch
from torch import Tensor

from ..checkpoint.reader import Files
from ..engine.options import RunOptions
from ..errors import UsageError
from ..messages import counted, printable
from ..output.files import output_errors, write_file
from ..output.lock import Busy, Lock
from ..planning.gates import GatePlan
from ..planning.plan import Plan
from ..system.signals import StopFlag
from .drawn import random_gates, uniform_gates, zero_gates
from .embedded import embedding_gates
from .hidden import average_gates, hidden_gates, input_gates
from .request import GateRequest

Compute = Callable[[GateRequest], Tensor]
"""Returns float32 [layers, rows, width], rows in the order of `gates.rows`."""

MODES: dict[str, Compute] = {
    "hidden": hidden_gates,
    "hidden_avg": average_gates,
    "mlp_input": input_gates,
    "cheap_embed": embedding_gates,
    "random": random_gates,
    "uniform_random": uniform_gates,
    "zeros": zero_gates,
}

WAIT_S = 0.5
"""Seconds between looks at whether another process has written the gates."""

EQUAL = 0.999
"""Cosine above which two gates are taken for the same."""


def prepare_gates(plan: Plan, options: RunOptions) -> None:
    """Write the file of a plan's gates, unless it is there; wait while another process does.

    Raises UsageError if the mode cannot be computed or gates vanish, InputError for unreadable
    weights, OutputError if the folder cannot be written, Stopped after a signal.
    """
    gates = plan.mixture.gates if plan.mixture else None
    while gates is not None and not is_complete(gates):
        folder = gates.file.parent
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with Lock(folder / f"lock-{gates.file.stem}", gates.file.name):
                if not is_complete(gates):
                    _write(gates, _computed(plan, gates, options))
        except Busy:
            time.sleep(WAIT_S)
        finally:
            with suppress(OSError):  # it holds the gates, or work of others
                folder.rmdir()


def is_complete(gates: GatePlan) -> bool:
    """Return whether the file of the gates is there, as long and with the header that it has."""
    try:
        with gates.file.open("rb") as file:
            header = file.read(len(gates.header))
            return header == gates.header and file.seek(0, os.SEEK_END) == gates.file_bytes
    except OSError:
        return False


def read_gates(gates: GatePlan) -> Tensor:
    """Return the gates of a file: float32 [layers, rows, width]. Raises OSError."""
    raw = bytearray(gates.file.read_bytes()[len(gates.header) :])
    return torch.frombuffer(raw, dtype=torch.float32).view(gates.layers, -1, gates.width)


def _computed(plan: Plan, gates: GatePlan, options: RunOptions) -> Tensor:
    compute, stop = MODES.get(gates.mode), StopFlag()
    if compute is None:
        raise UsageError(
            f"{plan.recipe.where}: gate_mode: {gates.mode} cannot be computed by this version; "
            f"choose one of {', '.join(MODES)}"
        )
    with closing(Files(plan.options.hub)) as files, options.stop_on_signal(stop):
        values = compute(GateRequest(plan, gates, files, options, stop))
        if stop.is_set():
            raise stop.error(0)
    for warning in alike(values, gates):
        options.warn(warning)
    return values


def _write(gates: GatePlan, values: Tensor) -> None:
    """Write the file as a whole: it is there complete, or not at all. OutputError."""
    raw = bytearray(values.numel() * 4)
    torch.frombuffer(raw, dtype=torch.float32).copy_(values.reshape(-1))
    with output_errors(gates.file.parent):
        write_file(gates.file, gates.header + raw, durable=True)


def alike(values: Tensor, gates: GatePlan) -> list[str]:
    """Return a warning for each pair of experts whose gates are the same in most layers.

    `values` is float32 [layers, rows, width].
    """
    if gates.mode == "zeros":
        return []
    rows = torch.nn.functional.normalize(values[:, : gates.experts].double(), dim=-1)
    same = (rows @ rows.mT > EQUAL).double().mean(0) > 0.5
    pairs = [
        (gates.rows[one].label, gates.rows[other].label)
        for one in range(gates.experts)
        for other in range(one)
        if same[one, other]
    ]
    if not pairs:
        return []
    first = f"{printable(pairs[0][1])} and {printable(pairs[0][0])}"
    return [
        f"the gates of {counted(len(pairs), 'pairs of experts')} are the same in most layers "
        f"({first}): the router cannot tell them apart; give them prompts that differ more"
    ]
