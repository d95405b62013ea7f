"""Layers found from tensor names, for any architecture: the first number in a name is its layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import UsageError
from ..tensors.source import TensorSource

# Fields of config.json that hold the number of layers; names of fields, no architectures.
FIELDS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_transformer_layers",
    "decoder_layers",
    "num_decoder_layers",
    "encoder_layers",
    "num_encoder_layers",
    "depth",
    "num_blocks",
    "layers",
    "encoder_num_hidden_layers",
    "decoder_num_hidden_layers",
)
LISTS = ("layers_block_type", "layer_types", "hybrid_override_pattern", "block_configs")
_TEXT = ("text_config", "llm_config", "language_config", "text_model", "thinker_config", "text")


_VISION_OR_AUDIO = re.compile(r"vision|visual|image|audio|speech")


class Count(NamedTuple):
    """One field that tells the number of layers: the keys that lead to it, and the number."""

    path: tuple[str, ...]
    value: int
    main: bool = False  # of the language model, as far as sections tell
    listed: bool = False  # the field is a list with an entry per layer


def is_vision_or_audio(name: str) -> bool:
    """Return whether a name of tensors or of a config section has a word for such a tower."""
    return _VISION_OR_AUDIO.search(name) is not None


def counts(config: Mapping[str, Any]) -> list[Count]:
    """Return every layer count of a config, sections included."""
    fields = _counts(config, ())
    text = [c for c in fields if any(key in _TEXT for key in c.path[:-1])]
    main = text or [c for c in fields if len(c.path) == 1] or fields
    return [c._replace(main=c in main) for c in fields]


def extra_layers(config: Mapping[str, Any]) -> int:
    """Return the number of prediction heads, which some checkpoints store as last layers."""
    for section in (config, *(config[k] for k in _TEXT if isinstance(config.get(k), dict))):
        value = section.get("num_nextn_predict_layers")
        if type(value) is int and value > 0:
            return value
    return 0


def _counts(section: Mapping[str, Any], path: tuple[str, ...]) -> list[Count]:
    fields = []
    for key, value in section.items():
        if key in FIELDS and type(value) is int:
            fields.append(Count((*path, key), value))
        elif isinstance(value, dict) and len(path) < 3:
            fields += _counts(value, (*path, key))
    # A backbone with `depths` of its stages lists stages, not layers.
    if not any(count.path[:-1] == path for count in fields) and "depths" not in section:
        lists = {key: section[key] for key in LISTS if isinstance(section.get(key), list | str)}
        fields += [Count((*path, k), len(v), listed=True) for k, v in lists.items() if v]
    return fields


_NUMBER = re.compile(r"(?:^|\.)([0-9]{1,5})(?=\.)")  # longer ones count no layers
_DIGITS = re.compile(r"\d+")
_INPUT = re.compile(
    r"wte|wpe|emb|emb_ln|shared|project_in|rotary.*|vision.*|visual.*|image.*|audio.*|speech.*"
    r"|multi_modal.*|mm_.*|.*projector|.*connector|patch.*|merger|perceiver.*|resampler.*"
)
_OUTPUT = ("embed_out", "embedding_norm", "vocab_projector")


class Layer(NamedTuple):
    """The layer of a tensor: stack (`model.layers.`), number in it, and the rest of the name."""

    stack: str
    number: int
    rest: str


class Pick(NamedTuple):
    """A layer that was taken into the result: of which model (by number), which one."""

    model: int
    layer: int


@lru_cache(maxsize=256)  # asked many times for one tensor while it is planned
def layer_of(name: str) -> Layer | None:
    """Return the layer in a tensor name, or None for embeddings, final norms and heads.

    Only the first number counts: `model.layers.3.mlp.experts.7.w1` is of layer 3, and
    `encoder.block.2.layer.0.SelfAttention.q` of block 2.
    """
    match = _NUMBER.search(name)
    if match is None:
        return None
    return Layer(name[: match.start(1)], int(match.group(1)), name[match.end(1) :])


def depths(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of every stack among the names."""
    stacks: dict[str, int] = {}
    for layer in map(layer_of, names):
        if layer is not None:
            stacks[layer.stack] = max(stacks.get(layer.stack, 0), layer.number + 1)
    return stacks


def fraction(number: int, depth: int) -> float:
    """Return the gradient position t = k/(L-1) of layer k of L; 1 where there is only one."""
    return min(1.0, number / (depth - 1)) if depth > 1 else 1.0


def depth_fraction(name: str, stacks: Mapping[str, int]) -> float:
    """Return the gradient position of a tensor in its stack; 0 outside layers, as in mergekit."""
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


@dataclass(frozen=True)
class Stack:
    """One stack of layers, which `slices` cut: its tensors by layer, and all other tensors.

    Names by layer are without prefix and number; the layer count of the config bounds the stack.

    `beyond` are layers after the last one that counts: prediction heads stored as layers.
    """

    prefix: str
    depth: int
    layers: dict[int, dict[str, TensorSource]]
    beyond: dict[int, dict[str, TensorSource]]
    loose: dict[str, TensorSource]

    def parts(self) -> dict[int, frozenset[str]]:
        """Return the names of tensors of every layer, without numbers of experts and the like."""
        return {n: frozenset(_DIGITS.sub("#", rest) for rest in r) for n, r in self.layers.items()}


@dataclass(frozen=True)
class Restacked:
    """A stack of layers, by number of the model, and the layers that replace those of the first."""

    stacks: Mapping[int, Stack]
    picks: tuple[Pick, ...]

    @property
    def prefix(self) -> str:
        return self.stacks[0].prefix

    @property
    def depths(self) -> dict[int, int]:
        """Layer counts before, by number of the model."""
        return {number: stack.depth for number, stack in self.stacks.items()}

    @property
    def same(self) -> bool:
        """Whether the first model keeps its layers."""
        return self.picks == tuple(Pick(0, number) for number in range(self.stacks[0].depth))


def find_stack(tensors: Mapping[str, TensorSource], config: Mapping[str, Any]) -> Stack:
    """Return the only stack, or the one as deep as the language model of the config.

    Raises UsageError (without the model's name) if there are none or several.
    """
    stacks = depths(tensors)
    # Modules in sub-folders have layers of their own.
    stacks = {stack: depth for stack, depth in stacks.items() if "/" not in stack} or stacks
    if not stacks:
        raise UsageError(" has no layers in its tensor names; it cannot be sliced")
    prefix = _choose(stacks, config)
    depth = stacks[prefix] - _beyond(stacks[prefix], config)
    layers: dict[int, dict[str, TensorSource]] = {}
    loose: dict[str, TensorSource] = {}
    for name, info in tensors.items():
        layer = layer_of(name)
        if layer is None or layer.stack != prefix:
            loose[name] = info
        else:
            layers.setdefault(layer.number, {})[layer.rest] = info
    beyond = {number: layers.pop(number) for number in sorted(layers) if number >= depth}
    return Stack(prefix, depth, layers, beyond, loose)


def gradient_depths(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, int]:
    """Return the depth of every stack without prediction heads, as gradients count it."""
    return {stack: depth - _beyond(depth, config) for stack, depth in depths(names).items()}


def _choose(stacks: Mapping[str, int], config: Mapping[str, Any]) -> str:
    if len(stacks) == 1:
        return next(iter(stacks))
    declared = {count.value for count in counts(config) if count.main}
    fits = [s for s, d in stacks.items() if d - _beyond(d, config) in declared]
    tower = any(map(is_vision_or_audio, fits)) and not all(map(is_vision_or_audio, stacks))
    if len(fits) == 1 and not tower and not config.get("is_encoder_decoder"):
        return fits[0]
    listed = ", ".join(f"{stack}* {depth}" for stack, depth in stacks.items())
    raise UsageError(
        f" has {len(stacks)} stacks of layers ({listed}); say under 'modules:' which one each "
        f"of the slices cuts"
    )


def _beyond(depth: int, config: Mapping[str, Any]) -> int:
    """Return how many of the layers are prediction heads, which the config counts apart."""
    extra = extra_layers(config)
    declared = {count.value for count in counts(config) if count.main}
    return extra if extra and depth - extra in declared else 0
