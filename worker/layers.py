"""Layers found from tensor names, for any architecture: the first number in a name is its layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_INPUT = re.compile(
    r"wte|wpe|emb|emb_ln|shared|project_in|rotary.*|vision.*|visual.*|image.*|audio.*|speech.*"
    r"|multi_modal.*|mm_.*|.*projector|.*connector|patch.*|merger|perceiver.*|resampler.*"
)
_OUTPUT = ("embed_out", "embedding_norm", "vocab_projector")


class Layer(NamedTuple):
    """Where a tensor belongs: `model.layers.` is a stack, 3 its layer there."""

    stack: str
    number: int
    rest: str


class Pick(NamedTuple):
    """A layer that was taken into the result: of which model (by number), which one."""

    model: int
    layer: int


@lru_cache(maxsize=256)  # asked many times for one tensor while it is planned
def layer_of(name: str) -> Layer | None:
    """The layer that a tensor name tells, or None for embeddings, final norms and heads.

    Only the first number counts: `model.layers.3.mlp.experts.7.w1` is of layer 3, and
    `encoder.block.2.layer.0.SelfAttention.q` of block 2.
    """
    found = _NUMBER.search(name)
    if found is None:
        return None
    return Layer(name[: found.start(1)], int(found.group(1)), name[found.end(1) :])


def depths(names: Iterable[str]) -> dict[str, int]:
    """The number of layers of every stack among the names."""
    found: dict[str, int] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            found[layer.stack] = max(found.get(layer.stack, 0), layer.number + 1)
    return found


def fraction(number: int, depth: int) -> float:
    """The gradient position t = k/(L-1) of layer k of L; 1 where there is only one."""
    return min(1.0, number / (depth - 1)) if depth > 1 else 1.0


def depth_fraction(name: str, stacks: Mapping[str, int]) -> float:
    """The gradient position of a tensor in its stack; 0 outside layers, as in mergekit."""
    layer = layer_of(name)
    return 0.0 if layer is None else fraction(layer.number, stacks[layer.stack])


def is_input(name: str) -> bool:
    """Whether a tensor outside the sliced layers stands before them: embeddings and their norms,
    positions, vision and audio towers, projectors.

    Everything else stands after them: final norms, heads, further prediction heads. The words of
    the name decide; `embed_out` is a head, and `embedding_norm` is what LFM2 calls its final norm.
    """
    words = name.split(".")
    if any(word in _OUTPUT for word in words):
        return False
    return any("embed" in word.lower() or _INPUT.fullmatch(word) for word in words)
