"""Tiny random dense models of the types that mixtures of experts are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HIDDEN, WIDTH, ROWS = 32, 48, 64

COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.7,
    },
    "granitemoehybrid": {
        "num_local_experts": 0,
        "shared_intermediate_size": WIDTH,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "olmo2": {},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 8,
    },
    "ernie4_5": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "qwen3_5_text": {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "cohere2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


def write_dense(folder: Path, model_type: str, seed: int = 0, **changes: Any) -> Path:
    """Write a model whose logits depend on every weight; `dtype` is among the changes."""
    dtype = changes.pop("dtype", torch.float32)
    config = CONFIG_MAPPING[model_type](**{**COMMON, **TYPES[model_type], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else 1 + 0.1 * noise)
    model.to(dtype).save_pretrained(folder)
    return folder


def change_config(folder: Path, *dropped: str, **changes: Any) -> None:
    """Drop fields of a model's config.json, and set others."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key in dropped:
        config.pop(key, None)
    path.write_text(json.dumps({**config, **changes}))


def logits(folder: Path) -> torch.Tensor:
    """Return the float32 logits of a model for two texts of 12 tokens: [2, 12, ROWS].

    Fails if a tensor is missing, unexpected or of another shape.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.randint(3, ROWS, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(ids).logits


def mixture_recipe(base: Path, experts: list[Path | str], **keys: Any) -> str:
    """Return a recipe with random gates, unless `keys` say otherwise."""
    body = {
        "merge_method": "moe",
        "base_model": str(base),
        "gate_mode": "random",
        "experts": [{"source_model": str(expert)} for expert in experts],
    }
    return json.dumps({**body, **keys})
