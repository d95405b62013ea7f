"""Table of config fields that describe single layers, and how each follows restacked layers.

To add a field, add a row `"field": handler` to HANDLERS: `per_layer` for a list with an entry per
layer, `index_list` for a list of layer numbers, `cycle` for a repeating pattern, or a new function
(view, key) -> new fields. A handler raises Inexpressible if no value describes the new layers,
which becomes an error that names the field. Fields are known by name, never by the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from .implied_fields import other_lists
from .layers import Pick

Section = Mapping[str, Any]


class Inexpressible(Exception):
    """No value of the field describes the new layers; the text says why."""


@dataclass(frozen=True)
class View:
    """The sections of all models, the layers taken, and the old depth by model."""

    sections: Mapping[int, Section]
    picks: Sequence[Pick]
    depths: Mapping[int, int]
    other: str = ""  # the stack that was not sliced, of an encoder and a decoder in one section

    @property
    def first(self) -> Section:
        return self.sections[0]

    def each(self, of: Callable[[Section, int], Any]) -> list[Any]:
        """Return `of(section, layer)` for every new layer, with the section of its model."""
        return [of(self.sections[pick.model], pick.layer) for pick in self.picks]


Handler = Callable[[View, str], dict[str, Any]]


def per_layer(view: View, key: str) -> dict[str, Any]:
    """Pick the entries of a list or string with an entry per layer."""
    for model in {pick.model for pick in view.picks}:
        value = view.sections[model].get(key)
        if not isinstance(value, list | str) or len(value) != view.depths[model]:
            raise Inexpressible("the models describe their layers in different ways")
    values = view.each(lambda section, layer: section[key][layer])
    return {key: "".join(values) if isinstance(view.first[key], str) else values}


def index_list(view: View, key: str) -> dict[str, Any]:
    """Renumber a list of layer numbers; they count from 1 where one is beyond the last layer."""
    if key == "mlp_only_layers" and view.first.get("decoder_sparse_step"):
        return {}  # sparse_step does both
    first = int(any(view.depths[m] in _indices(s) for m, s in view.sections.items()))
    flags = view.each(lambda section, layer: layer + first in (section.get(key) or ()))
    return {key: [number + first for number, flag in enumerate(flags) if flag]}


def index_text(view: View, key: str) -> dict[str, Any]:
    """Renumber layer numbers written as text, such as `4,5,6`."""

    def numbers(section: Section) -> list[int]:
        return [int(number) for number in section.get(key, "").split(",") if number.strip()]

    sections = {n: {**s, key: numbers(s)} for n, s in view.sections.items()}
    renumbered = index_list(replace(view, sections=sections), key)[key]
    return {key: ",".join(map(str, renumbered))}


def by_number(view: View, key: str) -> dict[str, Any]:
    """Renumber a table whose keys are layer numbers, padded with zeros to one width."""
    tables = {n: {int(k): v for k, v in s.get(key, {}).items()} for n, s in view.sections.items()}
    taken = {
        number: tables[pick.model][pick.layer]
        for number, pick in enumerate(view.picks)
        if pick.layer in tables[pick.model]
    }
    width = len(str(max(taken, default=0)))
    return {key: {str(number).zfill(width): value for number, value in taken.items()}}


def sources(view: View, key: str) -> dict[str, Any]:
    """Renumber the layer whose keys and values each layer uses: its own or an earlier one."""
    last: dict[Pick, int] = {}
    numbers = []
    for number, pick in enumerate(view.picks):
        last[pick] = number
        source = pick._replace(layer=view.sections[pick.model][key][pick.layer])
        if source not in last:
            raise Inexpressible(
                f"layer {pick.layer} uses layer {source.layer}, not taken before it"
            )
        numbers.append(last[source])
    return {key: numbers}


def _indices(section: Section) -> set[int]:
    """Return every layer number in the index lists of a section."""
    lists = [v for k, v in section.items() if INDEX_LIST.fullmatch(k) and isinstance(v, list)]
    return {number for listed in lists for number in listed if type(number) is int}


def cycle(view: View, key: str) -> dict[str, Any]:
    """Write out a pattern that repeats until the layers are used up."""
    return {key: view.each(lambda section, layer: section[key][layer % len(section[key])])}


def attention_types(view: View, key: str) -> dict[str, Any]:
    """GPT-Neo: [[[kinds], times] …]: written out as one run."""

    def kind(section: Section, layer: int) -> Any:
        runs = ((kinds, min(times, layer + 1)) for kinds, times in section[key])
        return [k for kinds, times in runs for _ in range(times) for k in kinds][layer]

    return {key: [[view.each(kind), 1]]}


def leading(view: View, key: str) -> dict[str, Any]:
    """Count the layers of some kind at the start."""
    flags = view.each(lambda section, layer: layer < (section.get(key) or 0))
    count = sum(flags)
    if not all(flags[:count]):
        raise Inexpressible(f"it counts layers at the start, which now are {where(flags)}")
    if count == len(flags) and view.first[key] > view.depths[0]:
        count = view.first[key]
    return {key: count}


def window_start(view: View, key: str) -> dict[str, Any]:
    """`max_window_layers`, which means something only with sliding windows on."""
    if not view.first.get("use_sliding_window"):
        whole = view.first[key] == view.depths[0]
        return {key: len(view.picks)} if whole else {}
    return leading(view, key)


def period(view: View, key: str) -> dict[str, Any]:
    """`x_period` with `x_offset`: the layers with number % period == offset."""
    offset = key.replace("period", "offset")
    flags = view.each(lambda s, layer: layer % s[key] == s.get(offset, 0))
    size = len(flags)
    if not any(flags):
        return {key: size + 1, offset: size}
    for length in (view.first[key], *range(1, size + 1)):
        for start in range(min(length, size)):
            if flags == [number % length == start for number in range(size)]:
                return {key: length, offset: start}
    raise Inexpressible(f"no period has the layers {where(flags)}")


def every(list_key: str, words: Sequence[Any]) -> Handler:
    """The last of every n layers: kept where it still fits, else written out as `list_key`."""

    def handler(view: View, key: str) -> dict[str, Any]:
        flags = view.each(lambda section, layer: _is_last(section[key], layer))
        fits = flags == [_is_last(view.first[key], number) for number in range(len(flags))]
        if fits or view.first.get(list_key):
            return {}
        if words:
            return {list_key: [words[0] if flag else words[1] for flag in flags]}
        return {list_key: [number for number, flag in enumerate(flags) if flag]}

    return handler


def _is_last(pattern: int | str, layer: int) -> bool:
    """Whether a layer is the last of its period, given as a number or spelled out, as `LLLG`."""
    if isinstance(pattern, str):
        return pattern[layer % len(pattern)] == pattern[-1]
    return (layer + 1) % pattern == 0


def sparse_step(view: View, key: str) -> dict[str, Any]:
    """Qwen MoE: sparse are the last of every n layers, but those of `mlp_only_layers`."""

    if view.other:  # encoder-decoders have no list of dense layers
        return keep_phase(view, key)

    def dense(section: Section, layer: int) -> bool:
        listed = section.get("mlp_only_layers") or ()
        return layer in listed or (layer + 1) % (section.get(key) or 1) != 0

    flags = view.each(dense)
    return {key: 1, "mlp_only_layers": [number for number, flag in enumerate(flags) if flag]}


def keep_phase(view: View, key: str) -> dict[str, Any]:
    """A period whose convention we need not know, as long as no layer changes its place in it."""
    lengths = {view.sections[pick.model].get(key) for pick in view.picks}
    length = view.first[key]
    if lengths == {length} and all(
        (pick.layer - number) % max(1, length) == 0 for number, pick in enumerate(view.picks)
    ):
        return {}
    raise Inexpressible(f"layers moved to another place in its period of {length}")


def moe_range(view: View, key: str) -> dict[str, Any]:
    """ERNIE: layers from `moe_layer_start_index` to `moe_layer_end_index` inclusive."""

    def sparse(section: Section, layer: int) -> bool:
        last = section.get("moe_layer_end_index", -1)
        return section[key] <= layer and (last in (-1, None) or layer <= last)

    if any((s.get("moe_layer_interval") or 1) != 1 for s in view.sections.values()):
        return keep_phase(view, "moe_layer_interval")
    flags = view.each(sparse)
    numbers = [number for number, flag in enumerate(flags) if flag]
    if numbers and numbers != list(range(numbers[0], numbers[-1] + 1)):
        raise Inexpressible(f"it is one run of layers, which now are {where(flags)}")
    first, last = (numbers[0], numbers[-1]) if numbers else (len(flags), len(flags))
    return {key: first, "moe_layer_end_index": last}


def refuse(view: View, key: str) -> dict[str, Any]:
    """Layers that use what other layers hold: they stay in their places or cannot be taken."""
    if [pick.layer for pick in view.picks] == list(range(view.depths[0])):
        return {}
    raise Inexpressible("layers share weights or states with other layers")


def same_numbers(view: View, key: str) -> dict[str, Any]:
    """Layers that compute with their own numbers: each keeps its number or cannot be taken."""
    if all(pick.layer == number for number, pick in enumerate(view.picks)):
        return {}
    raise Inexpressible("layers compute with their own numbers, which changed")


def staggered(view: View, key: str) -> dict[str, Any]:
    """PEGASUS-X: every other layer of the encoder staggers its blocks."""
    moved = any((pick.layer - number) % 2 for number, pick in enumerate(view.picks))
    if moved and view.other != "encoder":
        raise Inexpressible("every other layer staggers its blocks, and layers moved by one")
    return {}


def model_type(view: View, key: str) -> dict[str, Any]:
    """Layers whose code computes with their number or the number of layers, without a field."""
    kinds = {str(view.sections[pick.model].get(key)) for pick in view.picks}
    if any(view.depths[pick.model] != len(view.picks) for pick in view.picks) and kinds & USE_DEPTH:
        raise Inexpressible("layers compute with the number of layers, which changed")
    return same_numbers(view, key) if kinds & USE_NUMBERS else {}


def root_of_depth(view: View, key: str) -> dict[str, Any]:
    """Keep the quotient of the value and the root of the number of layers, which layers use."""
    if view.first.get("mup_denominator"):
        return {}  # MiniCPM 4 divides by that instead
    quotients = set(view.each(lambda section, layer: section[key])), set(view.depths.values())
    if any(len(values) > 1 for values in quotients):
        raise Inexpressible("the models scale their layers in different ways")
    return {key: view.first[key] * (len(view.picks) / view.depths[0]) ** 0.5}


def sparse_count(view: View, key: str) -> dict[str, Any]:
    """Switch Transformers: the last of every n layers are sparse, n = layers // this count."""
    steps = {view.depths[pick.model] // view.sections[pick.model][key] for pick in view.picks}
    step, size = min(steps), len(view.picks)
    moved = any((pick.layer - number) % step for number, pick in enumerate(view.picks))
    count = size // step
    if len(steps) > 1 or moved or not count or size // count != step:
        raise Inexpressible(f"no number of sparse layers has one in every {step} of {size}")
    return {key: count}


def stages(view: View, key: str) -> dict[str, Any]:
    """Renumber outputs of backbones: `stage3` or 3 is that of the third layer."""
    depth, size = view.depths[0], len(view.picks)
    if len(view.first.get("stage_names") or ()) != depth + 1:
        return {}  # a stage is more than a layer

    def moved(number: int) -> int:
        last = [n + 1 for n, pick in enumerate(view.picks) if pick == Pick(0, number - 1)][-1:]
        if number not in (0, depth) and not last:
            raise Inexpressible(f"it names the output of layer {number - 1}, which is not taken")
        return {0: 0, depth: size}.get(number, *last)

    if key == "stage_names":
        return {key: [f"stage{number}" if number else "stem" for number in range(size + 1)]}
    if key == "out_indices":
        return {key: [moved(number % (depth + 1)) for number in view.first[key]]}
    numbers = [view.first["stage_names"].index(name) for name in view.first[key]]
    return {key: [f"stage{moved(number)}" if number else "stem" for number in numbers]}


def parts_outside(view: View, key: str) -> dict[str, Any]:
    """Gemma 3n and 4, Idefics, YOLOS: tensors outside the layers hold a part for each or some."""
    if [pick.layer for pick in view.picks] == list(range(view.depths[0])):
        return {}
    raise Inexpressible("tensors outside the layers hold a part for each layer")


def where(flags: Sequence[bool]) -> str:
    """Return the numbers of the flagged layers, as `0-2, 5`."""
    numbers = [number for number, flag in enumerate(flags) if flag]
    # Within a run, numbers and their positions in the list differ by the same amount.
    by_run = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in run] for _, run in by_run]
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs) or "none"


HANDLERS: dict[str, Handler] = {
    "first_k_dense_replace": leading,
    "num_dense_layers": leading,
    "max_window_layers": window_start,
    "attn_layer_period": period,
    "expert_layer_period": period,
    "full_attention_interval": every("layer_types", ("full_attention", "linear_attention")),
    "sliding_window_pattern": every("layer_types", ("full_attention", "sliding_attention")),
    "interleave_moe_layer_step": every("moe_layers", ()),
    "no_rope_layer_interval": every("no_rope_layers", (0, 1)),
    "decoder_sparse_step": sparse_step,
    "moe_layer_freq": keep_phase,
    "num_sparse_encoder_layers": sparse_count,
    "num_sparse_decoder_layers": sparse_count,
    "moe_layer_start_index": moe_range,
    "global_attn_every_n_layers": keep_phase,
    "cross_layer_interval": parts_outside,
    "layer_group_size": keep_phase,
    "n_layers_per_attn_res_block": keep_phase,
    "block_types": cycle,
    "attention_types": attention_types,
    "scale_attn_by_inverse_layer_idx": same_numbers,
    "stagger_local_blocks": staggered,
    "scale_depth": root_of_depth,
    "model_type": model_type,
    "moe_layers_enum": index_text,
    "per_layer_config": by_number,
    "kv_source_layers": sources,
    "stage_names": stages,
    "out_features": stages,
    "out_indices": stages,
    "num_mem_blocks": refuse,
    "num_kv_shared_layers": refuse,
    "hidden_size_per_layer_input": parts_outside,
    "use_mid_position_embeddings": parts_outside,
    "aligner_num_add_layers": refuse,
}
"""How a field of that name follows the layers. Lists with an entry per layer need no name."""

ANY_VALUE = (
    by_number,
    index_text,
    model_type,
    parts_outside,
    root_of_depth,
    same_numbers,
    sources,
    staggered,
    stages,
)
"""Handlers that take values of other kinds than numbers and lists, or more kinds of lists."""

USE_NUMBERS = {"diffllama", "minimax"}
USE_DEPTH = {"esmc", "minimax"}
"""Model types whose code computes with the number of a layer, or with the number of layers."""

OVERRULED_BY = {
    "full_attention_interval": ("layer_types",),
    "sliding_window_pattern": ("layer_types",),
    "global_attn_every_n_layers": ("layer_types",),
    "max_window_layers": ("layer_types",),
    "attn_layer_period": ("layers_block_type", "layer_types"),
    "interleave_moe_layer_step": ("moe_layers",),
    "no_rope_layer_interval": ("no_rope_layers",),
    "first_k_dense_replace": ("mlp_layer_types",),
    "num_dense_layers": ("mlp_layer_types",),
    "moe_layer_freq": ("mlp_layer_types",),
}
"""Lists that say the same as the field, layer by layer, and take precedence over it."""

INDEX_LIST = re.compile(
    r".*(layer|attn|attention|block)s?_(indices|indexes|idxs?|ids|indics)|.*attn_idxs"
    r"|(?!no_rope|kv_source).*_layers|deepstack_visual_indexes|global_attention_blocks"
)
"""Names of lists of layer numbers."""

ELSEWHERE = {"target_layer_ids", "encode_proj_layers"}
"""Lists with numbers of other things: the layers of another model, levels of features."""

NOT_PER_LAYER = re.compile(
    r"architectures|.*_token_ids?|.*_token_index|time_step_.*|.*_names|id2label|.*_multipliers"
    r"|keys_to_ignore.*|mtp_.*|.*mean|.*std|.*_section|suppress_tokens|begin_suppress_tokens"
)
PER_LAYER = re.compile(
    r".*(layer|block|pattern|types|ffn_multipliers|attention_window).*|depths|num_heads"
)
CHANCE = 8
"""A longer list than this is as long as the model is deep for no other reason than its layers."""


def says_each_layer(key: str, count: int) -> bool:
    """Whether a list with as many entries as there are layers has one for each of them."""
    named = PER_LAYER.fullmatch(key) is not None
    by_chance = count <= CHANCE or NOT_PER_LAYER.fullmatch(key) or key in other_lists()
    return named or not by_chance


SUSPECT = re.compile(
    r"(?=.*(layer|block|attn|attention|expert|moe|mamba|sparse))(?!.*time_)"
    r".*(every|interval|period|freq|step).*"
)
"""Numbers that may be periods of layers, though nothing is known of them."""
