"""Tables of known layouts: names of the same tensors as converters and releases write them.

To add a row:
- a prefix of all names: a pair in PREFIXES, valid in both directions;
- a renamed module: `_renamed("name in one layout", "name in the other")` in the table of its
  architecture, such as OLMO_HYBRID; `beside` names a sibling tensor if the row holds only in one
  kind of layer, since names change their meaning between kinds;
- a fused or split tensor: `LayoutRule((_apart(*split names), _in_one(fused name)))`, where `woven`
  means interleaved and `turned` transposed;
- names that adapters see in memory: NAMES_IN_FILES and NAMES_IN_MEMORY.

Rows are facts about files, found from names and shapes; no model code is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipe.key_map import ANY, Layout, LayoutRule


def _apart(*names: str, beside: str = "") -> Layout:
    return Layout(tuple(ANY + name for name in names), sibling=beside)


def _in_one(name: str, *, woven: bool = False, turned: bool = False, beside: str = "") -> Layout:
    return Layout((ANY + name,), int(turned), woven, turned, beside)


def _renamed(*names: str, beside: str = "") -> LayoutRule:
    return LayoutRule(tuple(_apart(name, beside=beside) for name in names))


def _experts(place: str, *words: str) -> Layout:
    return _apart(*(f"{place}.experts.{{e}}.{word}.weight" for word in words))


OLMO_HYBRID = (
    # The names of norms say where they stand; one name means different norms in the two kinds.
    _renamed("input_layernorm.{_w}", "attention_layer_norm.{_w}", beside="linear_attn."),
    _renamed("post_attention_layernorm.{_w}", "feedforward_layer_norm.{_w}", beside="linear_attn."),
    _renamed("post_attention_layernorm.{_w}", "feedforward_layer_norm.{_w}", beside="self_attn."),
    _renamed("linear_attn.o_proj.{_w}", "linear_attn.out_proj.{_w}"),
    _renamed("linear_attn.o_norm.{_w}", "linear_attn.norm.{_w}"),
)

CONVOLUTIONS = tuple(
    LayoutRule(
        (_apart(*(f"{place}.{n}_conv1d.{{_w}}" for n in "qkv")), _in_one(f"{place}.conv1d.{{_w}}"))
    )
    for place in ("linear_attn", "self_attn")
)

# Stored as [expert, in, out]: gate and up in turns (gpt-oss, with biases), side by side (Llama 4).
_GPT_OSS = "mlp.experts.gate_up_proj_bias"
_LLAMA4 = "feed_forward.shared_expert."
STACKED_OTHERWISE = (
    LayoutRule(
        (
            _experts("mlp", "gate_proj", "up_proj"),
            _in_one("mlp.experts.gate_up_proj", woven=True, turned=True, beside=_GPT_OSS),
        )
    ),
    LayoutRule(
        (
            _experts("mlp", "down_proj"),
            _in_one("mlp.experts.down_proj", turned=True, beside=_GPT_OSS),
        )
    ),
    LayoutRule(
        (
            _apart("mlp.experts.{e}.gate_proj.bias", "mlp.experts.{e}.up_proj.bias"),
            _in_one("mlp.experts.gate_up_proj_bias", woven=True),
        )
    ),
    _renamed("mlp.experts.{e}.down_proj.bias", "mlp.experts.down_proj_bias"),
    LayoutRule(
        (
            _experts("feed_forward", "gate_proj", "up_proj"),
            _in_one("feed_forward.experts.gate_up_proj", turned=True, beside=_LLAMA4),
        )
    ),
    LayoutRule(
        (
            _experts("feed_forward", "down_proj"),
            _in_one("feed_forward.experts.down_proj", turned=True, beside=_LLAMA4),
        )
    ),
)

EXPERTS = (
    LayoutRule(
        (
            _experts("mlp", "gate_proj", "up_proj"),
            _experts("block_sparse_moe", "w1", "w3"),
            _in_one("mlp.experts.gate_up_proj"),
            _in_one("block_sparse_moe.experts.gate_up_proj"),
            _in_one("block_sparse_moe.input_linear.weight"),
        )
    ),
    LayoutRule(
        (
            _experts("mlp", "down_proj"),
            _experts("block_sparse_moe", "w2"),
            _apart("mlp.experts.down_proj"),
            _apart("block_sparse_moe.experts.down_proj"),
            _apart("block_sparse_moe.output_linear.weight"),
        )
    ),
    LayoutRule(
        (
            _experts("feed_forward", "gate_proj", "up_proj"),
            _experts("feed_forward", "w1", "w3"),
            _in_one("feed_forward.experts.gate_up_proj"),
        )
    ),
    LayoutRule(
        (
            _experts("feed_forward", "down_proj"),
            _experts("feed_forward", "w2"),
            _apart("feed_forward.experts.down_proj"),
        )
    ),
    *(
        _renamed(f"mixer.experts.{{e}}.{word}.weight", f"mixer.experts.{word}")
        for word in ("up_proj", "down_proj")
    ),
    _renamed("block_sparse_moe.gate.weight", "mlp.gate.weight", "mlp.router.weight"),
    _renamed("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
    _renamed("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
    _renamed(*(f"mlp.{place}moe_statics.e_score_correction_bias" for place in ("", "gate."))),
)

PROJECTIONS = (
    LayoutRule(
        (
            _apart(*(f"self_attn.{n}_proj.{{_w}}" for n in "qkv")),
            _in_one("self_attn.qkv_proj.{_w}"),
            _in_one("self_attn.Wqkv.{_w}"),
            _in_one("self_attn.W_pack.{_w}"),
        )
    ),
    LayoutRule(
        (
            _apart("{x}.gate_proj.{_w}", "{x}.up_proj.{_w}"),
            _in_one("{x}.gate_up_proj.{_w}"),
        )
    ),
)

KIMI_LINEAR = (
    *(
        _renamed(f"self_attn.{word}", f"self_attn.forget_gate.{word}")
        for word in ("A_log", "dt_bias", "f_a_proj.weight", "f_b_proj.weight")
    ),
    _renamed("block_sparse_moe.{x}", "mlp.{x}"),
)

# BERT as TensorFlow had it, as the releases still do; gates of attention (LFM 3); torch's own two
# ways to keep lengths apart.
RENAMED = (
    _renamed("LayerNorm.weight", "LayerNorm.gamma"),
    _renamed("LayerNorm.bias", "LayerNorm.beta"),
    _renamed("self_attn.gate_proj.{_w}", "self_attn.g_proj.{_w}"),
    _renamed("weight_g", "parametrizations.weight.original0"),
    _renamed("weight_v", "parametrizations.weight.original1"),
)

_GLM, _LAYER = "transformer.encoder.layers.{x}.", "model.layers.{x}."


def _plain(*names: str) -> LayoutRule:
    return LayoutRule(tuple(Layout((name,)) for name in names))


# ChatGLM, GLM-4 in their own code's names and in those of transformers.
GLM = (
    LayoutRule(
        (
            Layout(tuple(f"{_LAYER}self_attn.{n}_proj.{{_w}}" for n in "qkv")),
            Layout((f"{_GLM}self_attention.query_key_value.{{_w}}",)),
        )
    ),
    _plain(f"{_LAYER}self_attn.o_proj.{{_w}}", f"{_GLM}self_attention.dense.{{_w}}"),
    _plain(f"{_LAYER}mlp.gate_up_proj.{{_w}}", f"{_GLM}mlp.dense_h_to_4h.{{_w}}"),
    _plain(f"{_LAYER}mlp.down_proj.{{_w}}", f"{_GLM}mlp.dense_4h_to_h.{{_w}}"),
    *(
        _plain(f"{_LAYER}{norm}_layernorm.weight", f"{_GLM}{norm}_layernorm.weight")
        for norm in ("input", "post_attention")
    ),
    _plain("model.norm.weight", "transformer.encoder.final_layernorm.weight"),
    _plain("model.embed_tokens.weight", "transformer.embedding.word_embeddings.weight"),
    _plain("lm_head.weight", "transformer.output_layer.weight"),
)

# InternLM 2 and what its converter to Llama makes of it.
INTERNLM2 = (
    _renamed("self_attn.o_proj.{_w}", "attention.wo.{_w}"),
    *(
        _renamed(f"mlp.{word}_proj.{{_w}}", f"feed_forward.{short}.{{_w}}")
        for word, short in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
    ),
    _renamed("input_layernorm.weight", "attention_norm.weight"),
    _renamed("post_attention_layernorm.weight", "ffn_norm.weight"),
    _plain("model.embed_tokens.weight", "model.tok_embeddings.weight"),
    _plain("lm_head.weight", "output.weight"),
)

GPT_NEOX = (_plain("embed_out.weight", "lm_head.weight"),)

RULES = (
    *(*OLMO_HYBRID, *CONVOLUTIONS, *STACKED_OTHERWISE),
    *(*EXPERTS, *PROJECTIONS, *KIMI_LINEAR, *RENAMED, *GLM, *INTERNLM2),
    *GPT_NEOX,
)
"""In this order; tensors that one rule has taken are gone for the next."""


def of_heads(config: Mapping[str, Any]) -> tuple[LayoutRule, ...]:
    """Rules for what lies head by head: each head of keys with its queries, its keys and values."""
    heads = config.get("num_key_value_heads")
    if not isinstance(heads, int) or heads < 1:
        return ()
    apart = _apart(*(f"self_attn.{n}_proj.{{_w}}" for n in "qkv"))
    return (LayoutRule((apart, Layout((ANY + "attention.wqkv.{_w}",), groups=heads))),)


PREFIXES = (
    *(("model.language_model.", "model."), ("language_model.model.", "model.")),
    *(("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")),
    *(("model.language_model.", "language_model."), ("model.text_model.", "model.")),
    *(("backbone.", "model."), ("transformer.", ""), ("model.", ""), ("module.", "")),
    *(("_orig_mod.", ""), ("thinker.model.", "model."), ("thinker.lm_head.", "lm_head.")),
    *((f"{word}.", f"model.{word}.") for word in (
        "visual", "vision_tower", "vision_model", "multi_modal_projector", "audio_tower", "mtp",
    )),
)  # fmt: skip
"""Beginnings of names that mean the same, either way round."""

STACKED_EXPERTS = {"gate_up_proj": "input_linear", "down_proj": "output_linear"}
"""A parameter of all experts, and the module that holds it in files of Granite."""

SINGLE_EXPERTS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}
"""A parameter of all experts, and the matrices it is made of where each expert has its own."""

TRANSPOSED_EXPERTS = {"gpt_oss", "aria", "aria_text", "openai_privacy_filter"}
"""Model types that store the matrices of experts as (in, out)."""

NAMES_IN_FILES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(?=visual|vision|audio|multi_modal)", ""),
    (r"^model\.", "backbone."),
    (r"^model\.", ""),
    (r"^(?=layers\.|embed_tokens\.)", "model."),
    (r"\.mlp\.(?=experts|gate\b)", ".block_sparse_moe."),
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"\.router\.", ".router.layer."),
    (r"\.input_layernorm\.", ".attention_layer_norm."),
    (r"\.post_attention_layernorm\.", ".feedforward_layer_norm."),
)
"""Renamed modules, from names in memory to names that files may have; each row is one guess."""

NAMES_IN_MEMORY = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"\.block_sparse_moe\.(?=experts\.\d|gate\.)", ".mlp."),
    *(
        (rf"\.block_sparse_moe\.{module}\.weight$", f".block_sparse_moe.experts.{parameter}")
        for parameter, module in STACKED_EXPERTS.items()
    ),
    (r"\.router\.layer\.", ".router."),
    (r"\.attention_layer_norm\.", ".input_layernorm."),
    (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."),
)
"""Renamed modules, from names in files to those of transformers in memory; all rows apply."""
