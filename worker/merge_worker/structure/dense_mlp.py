"""The MLP of each layer of a dense model: gate, up and down projection, in any known layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from ..checkpoint.folder import Checkpoint
from ..errors import UsageError
from ..messages import printable
from ..tensors.source import TensorSource
from ..tensors.views import slice_axis
from .layers import Stack, find_stack
from .moe_config import expert_field


class Form(NamedTuple):
    """Names of the matrices of an MLP below its layer: gate, up, down; or gate and up as one."""

    names: tuple[str, ...]

    @property
    def module(self) -> str:
        return self.names[0].partition(".")[0] + "."


FORMS = (
    Form(("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")),
    Form(("mlp.gate_up_proj.weight", "mlp.down_proj.weight")),
    Form(("feed_forward.w1.weight", "feed_forward.w3.weight", "feed_forward.w2.weight")),
    Form(("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight")),
)
_EXPERTS = re.compile(r"(^|\.)(experts?\.|block_sparse_moe\.)")


class DenseMlp(NamedTuple):
    """The matrices of one MLP, gate and up [I, H] and down [H, I], and its names in the layer."""

    gate: TensorSource
    up: TensorSource
    down: TensorSource
    rests: frozenset[str]

    @property
    def matrices(self) -> tuple[TensorSource, TensorSource, TensorSource]:
        return self.gate, self.up, self.down


class DenseLayers(NamedTuple):
    """The stack of layers of a dense model, with names after the number's point, and its MLPs."""

    stack: Stack
    mlps: tuple[DenseMlp, ...]


def dense_layers(model: Checkpoint, label: str) -> DenseLayers:
    """Return the layers of a model, each with an MLP of three matrices without biases.

    Raises UsageError with the layer and the tensor that say otherwise.
    """
    try:
        stack = find_stack(model.tensors, model.config)
    except UsageError as error:
        raise UsageError(f"{label}{error}") from None
    named = {
        number: {rest.removeprefix("."): source for rest, source in layer.items()}
        for number, layer in stack.layers.items()
    }
    stack = replace(stack, layers=named)
    mlps = []
    for number in range(stack.depth):
        rests = stack.layers.get(number, {})
        mlps.append(_mlp(rests, label, f"{stack.prefix}{number}."))
    return DenseLayers(stack, tuple(mlps))


def mixture_fault(model: Checkpoint, label: str) -> str | None:
    """Return that a model is a mixture already, with the tensor and the field that say so."""
    mixed = next((name for name in model.tensors if _EXPERTS.search(name)), None)
    field = expert_field(model.config)
    found = [printable(mixed)] if mixed else []
    found += [f"{field} in its config"] if field else []
    if not found:
        return None
    places = "; ".join(found)
    return f"{label}: is a mixture of experts already ({places}); experts are made of dense models"


def _mlp(rests: Mapping[str, TensorSource], label: str, prefix: str) -> DenseMlp:
    form = next((form for form in FORMS if all(name in rests for name in form.names)), None)
    if form is None:
        raise UsageError(
            f"{label}: {printable(prefix)}* has no MLP of gate, up and down projections "
            f"({', '.join(form.names[0] for form in FORMS)}), which experts are made of"
        )
    own = frozenset(rest for rest in rests if rest.startswith(form.module))
    other = [prefix + rest for rest in rests if rest in own and rest not in form.names]
    if other:
        raise UsageError(
            f"{label}: {printable(other[0])}: the experts of a mixture have no such tensor, and "
            f"would lose it"
        )
    sources = [rests[name] for name in form.names]
    if len(sources) == 3:
        return DenseMlp(sources[0], sources[1], sources[2], own)
    fused, down = sources
    half = fused.shape[0] // 2
    gate = slice_axis(fused, 0, 0, half, f"{fused.name} (gate)")
    up = slice_axis(fused, 0, half, 2 * half, f"{fused.name} (up)")
    return DenseMlp(gate, up, down, own)
