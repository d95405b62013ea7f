"""Gates of what the base computes for prompts: the inputs of its layers, or of its MLPs.

All prompts of all experts go through the base in one pass, layer by layer, so that its weights are
read once and never are in memory together. The arithmetic is float32, sums are float64.

    hidden      the input of the layer at the last token; mean over the prompts
    hidden_avg  the input of the layer, summed over all positions of the prompts of an expert, which
                are padded on the left to the longest, divided by that length; mean over the prompts
    mlp_input   the input of the MLP, which is what its router will see; mean over all real tokens,
                or with `per_prompt` of the means of the prompts

The first two are as mergekit has them, up to its arithmetic in bfloat16; the states at padding take
part in hidden_avg as they do there. From each, that of the negative prompts is taken off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..engine.device import select_devices
from ..errors import InputError
from ..inference.layerwise import Call, LayerPass
from ..inference.model import Model, ModelOptions, open_model
from ..system.machine import return_freed_memory
from .request import GateRequest, directions
from .tokens import prompt_ids

TOKENS_AT_ONCE = 4096
"""Tokens of prompts of one length that run together."""


@dataclass(frozen=True)
class _Prompt:
    """Token ids of a prompt: the row of gates that it belongs to, and on which side."""

    row: int
    negative: bool
    ids: list[int]


class _Batch(NamedTuple):
    """Prompts side by side: ids and mask of real tokens [prompts, tokens]; factors of their sums.

    The vector of a prompt times its factor is its part in that of its row.
    """

    prompts: tuple[_Prompt, ...]
    ids: Tensor
    mask: Tensor
    factors: tuple[float, ...]


def hidden_gates(request: GateRequest) -> Tensor:
    """Return gates of the last tokens' inputs of the layers: float32 [layers, rows, width]."""
    prompts = _prompts(request)
    counts = _totals(prompts, lambda prompt: 1)
    batches = _by_length(prompts, [1 / counts[p.row, p.negative] for p in prompts])
    return _gates(request, batches, lambda x, mask: x[:, -1])


def average_gates(request: GateRequest) -> Tensor:
    """Return gates of the layers' mean inputs, with padding: float32 [layers, rows, width]."""
    prompts = _prompts(request)
    groups: dict[tuple[int, bool], list[_Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.row, prompt.negative), []).append(prompt)
    batches = [_padded(group) for group in groups.values()]
    return _gates(request, batches, lambda x, mask: x.sum(1))


def input_gates(request: GateRequest) -> Tensor:
    """Return gates of the mean inputs of the MLPs: float32 [layers, rows, width]."""
    prompts = _prompts(request)
    if request.gates.per_prompt:
        counts = _totals(prompts, lambda prompt: 1)
        factors = [1 / (counts[p.row, p.negative] * len(p.ids)) for p in prompts]
    else:
        tokens = _totals(prompts, lambda prompt: len(prompt.ids))
        factors = [1 / tokens[p.row, p.negative] for p in prompts]
    return _gates(request, _by_length(prompts, factors), lambda x, mask: x.sum(1), of_mlps=True)


def _prompts(request: GateRequest) -> list[_Prompt]:
    found = []
    for number, row in enumerate(request.gates.rows):
        for negative, texts in ((False, row.positive), (True, row.negative)):
            ids = prompt_ids(request.side_files, texts)
            found += [_Prompt(number, negative, one) for one in ids]
    return found


def _totals(prompts: Sequence[_Prompt], count: Any) -> dict[tuple[int, bool], int]:
    totals: dict[tuple[int, bool], int] = {}
    for prompt in prompts:
        key = prompt.row, prompt.negative
        totals[key] = totals.get(key, 0) + count(prompt)
    return totals


def _by_length(prompts: Sequence[_Prompt], factors: Sequence[float]) -> list[_Batch]:
    """Put prompts of one length together, so that none is padded and none depends on others."""
    groups: dict[int, list[tuple[_Prompt, float]]] = {}
    for pair in zip(prompts, factors, strict=True):
        groups.setdefault(len(pair[0].ids), []).append(pair)
    batches = []
    for length, pairs in sorted(groups.items()):
        count = max(1, TOKENS_AT_ONCE // length)
        for first in range(0, len(pairs), count):
            some, own = zip(*pairs[first : first + count], strict=True)
            ids = torch.tensor([prompt.ids for prompt in some])
            batches.append(_Batch(some, ids, torch.ones_like(ids), own))
    return batches


def _padded(prompts: Sequence[_Prompt]) -> _Batch:
    """Pad prompts on the left with their first token, which the mask hides."""
    width = max(len(prompt.ids) for prompt in prompts)
    rows = [[p.ids[0]] * (width - len(p.ids)) + p.ids for p in prompts]
    masks = [[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts]
    factor = 1 / (len(prompts) * width)
    return _Batch(tuple(prompts), torch.tensor(rows), torch.tensor(masks), (factor,) * len(prompts))


def _gates(
    request: GateRequest, batches: Sequence[_Batch], reduce: Any, of_mlps: bool = False
) -> Tensor:
    """Run the base on all batches; `reduce` makes vectors [prompts, width] of states and mask."""
    gates, plan = request.gates, request.plan
    return_freed_memory()
    with contextlib.suppress(ImportError):  # opening the model says what to install
        quiet_transformers()
    sums = torch.zeros(2, gates.layers, len(gates.rows), gates.width, dtype=torch.float64)
    device = select_devices(request.options.device)[0]
    options = ModelOptions("float32", device, hub=plan.options.hub)
    label = str(plan.recipe.base)
    with open_model(request.base, request.side_files, label, options) as model:
        if len(model.layers) != gates.layers or model.hidden_size != gates.width:
            raise InputError(f"{model.label}: its layers are not those of its weights")
        moved = [b._replace(ids=b.ids.to(device), mask=b.mask.to(device)) for b in batches]
        with _masked(model, moved):
            states = LayerPass(model, [batch.ids for batch in moved])

            def collect(layer: int, x: Tensor) -> None:
                batch = moved[states.batch]
                vectors = reduce(x.double(), batch.mask).cpu()
                for prompt, factor, vector in zip(
                    batch.prompts, batch.factors, vectors, strict=True
                ):
                    sums[int(prompt.negative), layer, prompt.row] += vector * factor

            with _hooks(request, model, of_mlps, collect):
                states.run(before=lambda call: _stop(request, call))
    return directions(sums[0] - sums[1], gates)


def quiet_transformers() -> None:
    """Keep transformers from printing advice and progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _stop(request: GateRequest, call: Call) -> None:
    if request.stop.is_set():
        raise request.stop.error(100 * call.layer / request.gates.layers)


@contextlib.contextmanager
def _hooks(request: GateRequest, model: Model, of_mlps: bool, collect: Any) -> Iterator[None]:
    """Call `collect` with the number of a layer and the input of it, or of its MLP."""

    def hook(layer: int) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = (value for value in (*args, *named.values()) if isinstance(value, Tensor))
            first = named.get("hidden_states", next(tensors))
            collect(layer, first)

        return keep

    handles = []
    for number, layer in enumerate(model.layers):
        module = _mlp(request, model, number) if of_mlps else layer
        handles.append(module.register_forward_pre_hook(hook(number), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mlp(request: GateRequest, model: Model, number: int) -> nn.Module:
    """Return the module whose matrices become an expert."""
    assert request.plan.mixture is not None
    rests = request.plan.mixture.layers[0].mlps[number].rests
    word = min(rests).partition(".")[0]
    found = getattr(model.layers[number], word, None)
    if not isinstance(found, nn.Module):
        kind = type(model.layers[number]).__name__
        raise InputError(
            f"{model.label}: {kind} of transformers has no '{word}', whose input "
            f"gate_mode: mlp_input takes\n  choose gate_mode: hidden"
        )
    return found


@contextlib.contextmanager
def _masked(model: Model, batches: Sequence[_Batch]) -> Iterator[None]:
    """Give the model the mask of each batch that has padding, whenever it runs on its ids."""
    masks = {b.ids.data_ptr(): b.mask for b in batches if not bool(b.mask.all())}
    if not masks:
        yield
        return
    plain = model.module.forward

    def forward(input_ids: Tensor, **named: Any) -> Any:
        mask = masks.get(input_ids.data_ptr())
        return plain(input_ids=input_ids, attention_mask=mask, **named)

    model.module.forward = forward
    try:
        yield
    finally:
        del model.module.forward
