"""Config fields that change what weights mean, compared between models before they are merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..messages import printable

FIELDS = frozenset(
    """
    architectures model_type is_decoder position_embedding_type alibi
    rope_theta rope_scaling rotary_emb_base rope_local_base_freq partial_rotary_factor
    rotary_pct rotary_dim no_rope_layers no_rope_layer_interval
    num_attention_heads num_key_value_heads num_heads num_kv_heads n_head n_heads n_head_kv
    head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim linear_num_key_heads
    linear_num_value_heads mamba_n_heads mamba_n_groups
    hidden_act hidden_activation activation_function mlp_hidden_act
    rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon layernorm_epsilon
    sliding_window layer_types layers_block_type attention_chunk_size sliding_window_pattern
    attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar clip_qkv qk_norm
    use_qk_norm attention_bias logit_scale logits_scaling attention_multiplier
    embedding_multiplier residual_multiplier scale_emb scale_depth dim_model_base
    use_parallel_residual parallel_attn
    num_experts_per_tok num_experts_per_token moe_topk norm_topk_prob routed_scaling_factor
    scoring_func topk_method n_group topk_group
    """.split()
)
"""Names of fields; tensors of equal shapes mean different functions where one of them differs."""

MOST = 4


def config_differences(models: Sequence[Checkpoint], labels: Sequence[str]) -> list[str]:
    """Return a warning for each model whose config differs from the first one's in such a field.

    A field that only one config has says nothing: the other means a default of model code.
    """
    first = _fields(models[0].config)
    notes = []
    if not models[0].config and (other := _with_config(models, labels)):
        notes.append(
            f"{labels[0]}: no config.json, so the result has none; {other} has one, to copy into "
            f"OUT or to list first"
        )
    for model, label in zip(models[1:], labels[1:], strict=True):
        own = _fields(model.config)
        differ = [key for key in own if key in first and own[key] != first[key]]
        if differ:
            listed = [f"{key} {_shown(own[key])} against {_shown(first[key])}" for key in differ]
            more = [f"{len(listed) - MOST} more fields"] if len(listed) > MOST else []
            notes.append(
                f"{label}: config differs from {labels[0]}, whose config the result has: "
                f"{', '.join([*listed[:MOST], *more])}"
            )
    return notes


def _with_config(models: Sequence[Checkpoint], labels: Sequence[str]) -> str | None:
    return next((n for m, n in zip(models, labels, strict=True) if m.config), None)


def _shown(value: object) -> str:
    text = printable(str(value[0] if isinstance(value, list) and len(value) == 1 else value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that change meaning, by dotted name without `text_config`."""
    return dict(_walk(config, ""))


def _walk(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    section = _with_rope_fields(section)
    for key, value in section.items():
        if key in FIELDS and not (key == "sliding_window" and _window_is_off(section)):
            yield prefix + key, value
        elif isinstance(value, dict) and key.endswith("_config") and "quant" not in key:
            yield from _walk(value, prefix if key == "text_config" else f"{prefix}{key}.")


def _window_is_off(section: Mapping[str, Any]) -> bool:
    return section.get("use_sliding_window", True) in (False, None)


def _with_rope_fields(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with the base and the scaling of RoPE as two fields.

    transformers 5 writes both as `rope_parameters`, of which the default is no scaling.
    """
    fields = dict(section)
    rope = fields.pop("rope_parameters", None) or fields.get("rope_scaling")
    if isinstance(rope, dict):
        rope = {"rope_type" if key == "type" else key: value for key, value in rope.items()}
        theta = rope.pop("rope_theta", None)
        if theta is not None:
            fields["rope_theta"] = theta
        is_default = rope.get("rope_type", "default") == "default" and len(rope) <= 1
        fields["rope_scaling"] = None if is_default else rope
    elif "rope_theta" in fields:
        fields["rope_scaling"] = None
    return fields
