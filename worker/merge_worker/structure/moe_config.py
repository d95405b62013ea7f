"""The config of a mixture: the base's own text, with the fields that its target needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .moe_targets import DENSE_DEFAULTS, DROPPED, Target

Config = Mapping[str, Any]
ROPE = ("rope_parameters", "rope_scaling")
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


class Sizes(NamedTuple):
    """The numbers of a mixture: experts, experts of a token, and widths in elements.

    `shared` is the number of shared experts of the recipe, `shared_width` the width of what stands
    in the result for them.
    """

    experts: int
    per_token: int
    intermediate: int
    shared: int = 0
    shared_width: int = 0


def mixture_config(config: Config, target: Target, sizes: Sizes) -> dict[str, Any]:
    """Return the config of a mixture of the base's config, in the base's order of fields."""
    base_type = str(config.get("model_type"))
    values = {
        "=N": sizes.experts,
        "=K": sizes.per_token,
        "=I": sizes.intermediate,
        "=S": sizes.shared_width,
        "=shared": sizes.shared,
        "=scale": head_size(config) ** -0.5,
    }
    fields = {**target.fields, **target.bases[base_type]}
    filled = {
        key: values[value] if isinstance(value, str) and value.startswith("=") else value
        for key, value in fields.items()
    }
    result = {key: value for key, value in config.items() if key not in DROPPED}
    for key, default in DENSE_DEFAULTS.get(base_type, {}).items():
        if not _is_given(config, key):
            computed = {"=heads": _heads, "=head": head_size}.get(str(default))
            result[key] = computed(config) if computed else default
    result |= {"architectures": [target.architecture], "model_type": target.name, **filled}
    rope = result.get("rope_parameters")
    if "partial_rotary_factor" in filled and isinstance(rope, dict):
        result["rope_parameters"] = {**rope, "partial_rotary_factor": 1.0}
    return result


def misfit(config: Config, target: Target) -> str | None:
    """Return why a base of a type that the target takes does not fit it all the same, or None."""
    base_type = config.get("model_type")
    if base_type == "phi3":
        for section in (config, *(_section(config, key) for key in ROPE)):
            part = section.get("partial_rotary_factor")
            if part not in (None, 1):
                return f"partial_rotary_factor is {part}, and the target rotates whole heads"
            kind = section.get("rope_type", section.get("type"))
            if kind not in (None, "default"):
                return f"its rotary embedding is of the kind '{kind}', which the target lacks"
    if base_type == "mistral" and target.name == "qwen2_moe":
        window = _silent_default(config, "sliding_window")
        if window is not None:
            return f"its attention has a window of {window} tokens, which the target lacks"
    if base_type == "qwen3" and config.get("use_sliding_window"):
        return "use_sliding_window is true, and the target has no such window"
    return None


def activation(config: Config) -> str:
    """Return the activation of a model's MLP; `silu`, which all classes here have as default."""
    given = next((config[key] for key in ACTIVATIONS if config.get(key)), "silu")
    return {"swish": "silu"}.get(str(given), str(given))


def expert_field(config: Config) -> str | None:
    """Return `key: value` of the field that says that a model is a mixture already, or None."""
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    given = ((key, config.get(key)) for key in keys)
    return next((f"{k}: {n}" for k, n in given if type(n) is int and n > 1), None)


def head_size(config: Config) -> int:
    """Return the width of an attention head."""
    given = config.get("head_dim")
    if isinstance(given, int) and given > 0:
        return given
    return max(1, int(_silent_default(config, "hidden_size") or 1) // max(1, _heads(config)))


def _heads(config: Config) -> int:
    heads = _silent_default(config, "num_attention_heads")
    return heads if isinstance(heads, int) and heads > 0 else 32


def key_value_heads(config: Config) -> int:
    """Return the number of heads of keys and values."""
    given = config.get("num_key_value_heads")
    return given if isinstance(given, int) and given > 0 else _heads(config)


def _silent_default(config: Config, key: str) -> Any:
    """Return a field, or the default of the class of the base."""
    if key in config:
        return config[key]
    return DENSE_DEFAULTS.get(str(config.get("model_type")), {}).get(key)


def _is_given(config: Config, key: str) -> bool:
    """Return whether a config has a field; a number of heads is not given by null."""
    if key == "num_key_value_heads":
        return config.get(key) is not None
    if key == "rope_theta":
        return key in config or any(key in _section(config, section) for section in ROPE)
    return key in config


def _section(config: Config, key: str) -> Config:
    value = config.get(key)
    return value if isinstance(value, dict) else {}
