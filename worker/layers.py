"""Layers found from tensor names, for any architecture: the first number in a name is its layer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")


class Layer(NamedTuple):
    """Where a tensor belongs: `model.layers.` is a stack, 3 its layer there."""

    stack: str
    number: int


def layer_of(name: str) -> Layer | None:
    """The layer that a tensor name tells, or None for embeddings, final norms and heads.

    Only the first number counts: `model.layers.3.mlp.experts.7.w1` is of layer 3, and
    `encoder.block.2.layer.0.SelfAttention.q` of block 2.
    """
    found = _NUMBER.search(name)
    if found is None:
        return None
    return Layer(name[: found.start(1)], int(found.group(1)))


def depths(names: Iterable[str]) -> dict[str, int]:
    """The number of layers of every stack among the names."""
    found: dict[str, int] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            found[layer.stack] = max(found.get(layer.stack, 0), layer.number + 1)
    return found


def depth_fraction(name: str, stacks: dict[str, int]) -> float:
    """The gradient position t = k/(L-1) of a tensor; 0 outside layers, 1 in a stack of one."""
    layer = layer_of(name)
    if layer is None:
        return 0.0
    depth = stacks[layer.stack]
    return layer.number / (depth - 1) if depth > 1 else 1.0
