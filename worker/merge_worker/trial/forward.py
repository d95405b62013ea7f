"""One forward pass of a model of any kind, with inputs made from its config."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .libraries import first_line

if TYPE_CHECKING:
    from torch import Tensor

NOT_A_NUMBER = "its output has NaN"
LENGTH = 12
"""Token ids of a text that is made up."""
_SAMPLES = 16000
"""One second of sound at the rate that models of speech take."""


def forward(model: Any, tokenizer: Any, text: str) -> tuple[str, float | None, str]:
    """Run a model once. Return what was done, the entropy of its last logits if it has any over
    tokens, and a warning if no input could be made for it.

    Raises FloatingPointError if the output has NaN.
    """
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    no_cache = {"use_cache": False} if takes_cache else {}
    reasons = []
    for inputs in _candidates(model, tokenizer, text):
        try:
            output = model(**inputs, **no_cache)
        except Exception as error:  # a model of another kind wants other inputs
            reasons.append(f"{type(error).__name__}: {first_line(error)}")
            continue
        tensors = [t for t in _tensors(output) if t.is_floating_point()]
        if any(bool(torch.isnan(tensor).any()) for tensor in tensors):
            raise FloatingPointError(NOT_A_NUMBER)
        return f"forward pass on {', '.join(inputs)}", _last_entropy(model, output), ""
    reason = reasons[0] if reasons else "its inputs are of an unknown kind"
    return "loaded only", None, f"no forward pass was run: {reason}"


def entropy_of(logits: Tensor) -> float:
    """Return the entropy of logits [V] in nats. FloatingPointError if they have NaN."""
    if bool(torch.isnan(logits).any()):
        raise FloatingPointError(NOT_A_NUMBER)
    chances = torch.log_softmax(logits.double(), -1)
    return float(-(chances.exp() * chances.clamp(min=-1e30)).sum())


def _last_entropy(model: Any, output: Any) -> float | None:
    logits = getattr(output, "logits", None)
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    if isinstance(logits, torch.Tensor) and logits.ndim == 3 and logits.shape[-1] == size:
        return entropy_of(logits[0, -1])
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _candidates(model: Any, tokenizer: Any, text: str) -> Iterator[dict[str, Tensor]]:
    """Yield inputs to try: the main one, with more that the model takes, its own samples."""
    names = set(inspect.signature(model.forward).parameters)
    own = {
        "input_ids": _ids(model, tokenizer, text),
        "pixel_values": _pixels(model),
        "input_features": _spectrum(model),
        "input_values": torch.linspace(-1, 1, _SAMPLES)[None],
    }
    main = getattr(model, "main_input_name", "input_ids")
    sight_and_sound = [name for name in own if name in names and name != "input_ids"]
    sets = [[main], ["input_ids"], ["input_ids", *sight_and_sound], sight_and_sound]
    parts = [{name: own[name] for name in wanted if name in own} for wanted in sets]
    if isinstance(samples := _samples(model), dict):
        parts.append(samples)
    for part in parts:
        if not part or (not set(part) <= names and "kwargs" not in names):
            continue
        if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
            start = getattr(model.config, "decoder_start_token_id", None) or 0
            part = {**part, "decoder_input_ids": torch.tensor([[start]])}
        yield {name: _placed(tensor, model) for name, tensor in part.items()}


def _samples(model: Any) -> Any:
    try:
        return model.dummy_inputs
    except Exception:  # few classes have them
        return None


def _placed(tensor: Tensor, model: Any) -> Tensor:
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)


def _ids(model: Any, tokenizer: Any, text: str) -> Tensor:
    if tokenizer is not None:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.numel():
            return ids  # type: ignore[no-any-return]
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    count = size if isinstance(size, int) and size > 0 else LENGTH
    return (torch.arange(LENGTH) + 3).remainder(count)[None]


def _pixels(model: Any) -> Tensor:
    config = getattr(model.config, "vision_config", model.config)
    side = getattr(config, "image_size", 224)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    channels = getattr(config, "num_channels", 3)
    return torch.linspace(-1, 1, channels * height * width).view(1, channels, height, width)


def _spectrum(model: Any) -> Tensor:
    bins = getattr(model.config, "num_mel_bins", 80)
    frames = 2 * getattr(model.config, "max_source_positions", 1500)
    return torch.linspace(-1, 1, bins * frames).view(1, bins, frames)
