"""Component of a tensor from the words of its name: attention, MLP, experts … No torch.

No architecture is listed here: one word decides, and names without a known word are `other`.
"""

from __future__ import annotations

import re

from .layers import is_input, layer_of

# Buffers that old versions of transformers stored beside the weights: rotary frequencies, causal
# masks and numbers of positions. Models compute them, and new versions store none.
_ALWAYS = re.compile(
    r"(^|\.)(rotary\w*\.(inv_freq|\w+_cached)|(attn|attention)\.masked_bias"
    r"|position_ids|token_type_ids|relative_position_index)$"
)
_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")


def is_computed(name: str, shape: tuple[int, ...]) -> bool:
    return bool(_ALWAYS.search(name) or (len(shape) == 4 and _MASK.search(name)))


ATTENTION, LINEAR, MLP, EXPERTS = "attention", "linear attention/SSM", "MLP", "experts"
NORMS, EMBEDDINGS, OTHER = "norms", "embeddings", "other"

COMPONENTS = (EMBEDDINGS, ATTENTION, LINEAR, MLP, EXPERTS, NORMS, OTHER)
"""In the order of tables and pictures."""

_NORM = re.compile(r"(.*[_.])?(layer|batch|group|rms)?_?norm(_?\d*|_[a-z])|ln(_\w+)?", re.I)
_EMBEDDING = re.compile(r"lm_head|embed_out|output|head|score|wte|wpe|shared|.*embed.*", re.I)
_LINEAR = (
    r"linear_attn|linear_attention|.*mamba\d?|ssm|conv\d?d?|gla|rwkv\w*|time_mix(er)?"
    r"|rglru|delta_?net|retention|recurrent(_block)?"
)
# The first of these that has a word of the name decides; the last word counts least, since a
# `linear_attn.q_proj` is no attention, but a `mixer` is what it holds.
_PATTERNS = (
    (EXPERTS, r".*experts?|.*moe"),
    (LINEAR, _LINEAR),
    (ATTENTION, r"(.*_)?att(n|ention)|(self|encdec|cross)attention"),
    (EXPERTS, r"router|gate|.*experts?(_gate)?|e_score_correction_bias"),
    (MLP, r"(.*_)?mlp|feed_?forward|ffn?|densereludense|intermediate|channel_mix(er)?"),
    (ATTENTION, r"[qkvo]_proj|qkv(_proj)?|w[qkvo]|query|key|value|query_key_value|c_attn|sinks"),
    (LINEAR, r"a_log|d|dt_(proj|bias)|x_proj|(in|out)_proj|conv1d"),
    (MLP, r"(gate|up|down|gate_up)_proj|fc\d?|w[123]|output|dense_\w+|linear_?\d"),
)
_RULES = [(component, re.compile(pattern, re.I)) for component, pattern in _PATTERNS]


def component_of(name: str) -> str:
    """One of COMPONENTS, for any tensor of any architecture."""
    layer = layer_of(name)
    words = [word for word in (layer.rest if layer else name).split(".") if word]
    leaf = words[:-1] if len(words) > 1 and words[-1] in ("weight", "bias") else words
    if leaf and _NORM.fullmatch(leaf[-1]):
        return NORMS
    if layer is None and (is_input(name) or any(_EMBEDDING.fullmatch(word) for word in leaf)):
        return EMBEDDINGS
    for component, pattern in _RULES:
        if any(pattern.fullmatch(word) for word in words):
            return component
    return OTHER


def place_of(name: str) -> tuple[str, int]:
    """Return stack and layer of a tensor; `input` and `output` before and after all layers."""
    layer = layer_of(name)
    if layer is not None:
        return layer.stack, layer.number
    return ("input", -1) if is_input(name) else ("output", -1)
