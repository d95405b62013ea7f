"""The stack of layers that `slices` cut: found by names, and by the layer count of the config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .layer_count import counts, extra_layers
from .layers import depths, layer_of
from .origin import Origin


@dataclass(frozen=True)
class Stack:
    """One stack of a model: its tensors by layer (names less prefix and number), and the others.

    `beyond` are layers after the last one that counts: prediction heads stored as layers.
    """

    prefix: str
    depth: int
    layers: dict[int, dict[str, Origin]]
    beyond: dict[int, dict[str, Origin]]
    loose: dict[str, Origin]


def find_stack(tensors: Mapping[str, Origin], config: Mapping[str, Any]) -> Stack:
    """The only stack among the tensors, or the one as deep as the language model of the config.

    UsageError (without the model's name) where several could be meant.
    """
    found = depths(tensors)
    if not found:
        raise UsageError(" has no layers in its tensor names; it cannot be sliced")
    prefix = _choose(found, config)
    depth = found[prefix] - _beyond(found[prefix], config)
    layers: dict[int, dict[str, Origin]] = {}
    loose: dict[str, Origin] = {}
    for name, info in tensors.items():
        layer = layer_of(name)
        if layer is None or layer.stack != prefix:
            loose[name] = info
        else:
            layers.setdefault(layer.number, {})[layer.rest] = info
    beyond = {number: layers.pop(number) for number in sorted(layers) if number >= depth}
    return Stack(prefix, depth, layers, beyond, loose)


def gradient_depths(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, int]:
    """The depth of every stack as gradients see it, without prediction heads."""
    return {stack: depth - _beyond(depth, config) for stack, depth in depths(names).items()}


def _choose(found: Mapping[str, int], config: Mapping[str, Any]) -> str:
    if len(found) == 1:
        return next(iter(found))
    declared = {count.value for count in counts(config) if count.main}
    fits = [s for s, d in found.items() if d - _beyond(d, config) in declared]
    if len(fits) == 1 and not config.get("is_encoder_decoder"):
        return fits[0]
    listed = ", ".join(f"{stack}* {depth}" for stack, depth in found.items())
    raise UsageError(
        f" has {len(found)} stacks of layers ({listed}); say under 'modules:' which one each "
        f"of the slices cuts"
    )


def _beyond(depth: int, config: Mapping[str, Any]) -> int:
    """How many of the layers are prediction heads that the config counts apart."""
    extra = extra_layers(config)
    declared = {count.value for count in counts(config) if count.main}
    return extra if extra and depth - extra in declared else 0
