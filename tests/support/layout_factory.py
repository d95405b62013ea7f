"""One model on disk in the layouts that converters and versions of transformers write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from support.checkpoint_factory import EXPERTS, disturb, make_model, read_tensors, write_checkpoint

Tensors = dict[str, Tensor]


def save(model: Any, folder: Path, layout: str) -> Path:
    """Write the model below `folder` in a layout of its family."""
    stacked = folder.with_name(folder.name + "-stacked")
    model.save_pretrained(stacked, save_original_format=False)
    rename = LAYOUTS[model.config.model_type][layout]
    config = json.loads((stacked / "config.json").read_text())
    if rename is None:
        model.save_pretrained(folder)
        return folder
    return write_checkpoint(folder, rename(read_tensors(stacked)), config=config)


def same(tensors: Tensors) -> Tensors:
    return tensors


def _apart_convolutions(tensors: Tensors) -> Tensors:
    result: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith("linear_attn.conv1d.weight"):
            result[name] = tensor
            continue
        place = name.removesuffix("conv1d.weight")
        sizes = [tensors[f"{place}{n}_proj.weight"].shape[0] for n in "qkv"]
        for n, part in zip("qkv", tensor.split(sizes), strict=True):
            result[f"{place}{n}_conv1d.weight"] = part.clone()
    return result


def _norms(linear: bool, attention: str) -> Callable[[Tensors], Tensors]:
    """Rename the norms of linear-attention layers, and the norm after attention."""

    def renamed(tensors: Tensors) -> Tensors:
        result: Tensors = {}
        for name, tensor in tensors.items():
            layer = re.match(r"model\.layers\.\d+\.", name)
            if layer and f"{layer.group()}linear_attn.A_log" in tensors and linear:
                name = name.replace("input_layernorm", "attention_layer_norm")
                name = name.replace("post_attention_layernorm", "feedforward_layer_norm")
            elif layer:
                name = name.replace("post_attention_layernorm", attention)
            result[name] = tensor
        return result

    return renamed


def olmo(linear: bool, attention: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: _norms(linear, attention)(_apart_convolutions(tensors))


def exporter(tensors: Tensors) -> Tensors:
    """Rename parts of linear attention as OLMo-core's exporter does."""
    renamed = {
        name.replace("linear_attn.o_proj", "linear_attn.out_proj").replace(
            "linear_attn.o_norm", "linear_attn.norm"
        ): tensor
        for name, tensor in tensors.items()
    }
    return olmo(False, "post_attention_layernorm")(renamed)


MORE: dict[str, dict[str, Any]] = {
    "lfm2_moe": {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
        **EXPERTS,
    },
    "minimax": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 4,
        "head_dim": 8,
        "block_size": 8,
    },
    "deepseek_v3": {
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "kimi_linear": {
        "num_hidden_layers": 4,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "num_expert_group": 1,
        "topk_group": 1,
        "linear_attn_config": {
            "kda_layers": [1, 2, 3],
            "full_attn_layers": [4],
            "num_heads": 2,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
        },
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
}

# Layout → conversion from the tensors in memory; None: as save_pretrained writes them.
LAYOUTS: dict[str, dict[str, Callable[[Tensors], Tensors] | None]] = {
    "olmo_hybrid": {
        "first converter": olmo(True, "post_attention_layernorm"),
        "released": olmo(False, "post_attention_layernorm"),
        "save_pretrained": None,
        "in memory": same,
    },
    **{
        name: {"one by one": None, "stacked": same}
        for name in (
            "qwen3_moe",
            "mixtral",
            "minimax",
            "deepseek_v3",
            "qwen3_next",
            "jamba",
            "nemotron_h",
            "lfm2_moe",
            "kimi_linear",
        )
    },
    "granitemoehybrid": {"released": None, "in memory": same},
}


# Families with released names that differ from those in memory.
OWN = ("ernie4_5_moe", "exaone_moe", "gpt_neox", "lfm3")
OTHERS = (
    *("qwen2_moe", "olmoe", "phimoe", "dots1", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
    *("hunyuan_v1_moe", "flex_olmo", "longcat_flash", "afmoe", "granitemoe", "minimax_m2"),
    *("granitemoeshared", "deepseek_v2", "deepseek_v32", "solar_open", "cohere2_moe", "mellum"),
)
LAYOUTS |= {name: {"released": None, "in memory": same} for name in (*OWN, *OTHERS)}

# Fields that make a model small, applied as far as its config has them.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "index_n_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "index_head_dim"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts"), 1),
    **dict.fromkeys(("num_shared_experts", "zero_expert_num", "num_dense_layers", "num_layers"), 1),
    **dict.fromkeys(("rotary_dim", "index_topk"), 4),
    "ffn_hidden_size": 64,
    "num_key_value_heads": 4,
}


def small(model_type: str) -> dict[str, Any]:
    from transformers import AutoConfig

    if model_type not in (*OWN, *OTHERS):
        return MORE.get(model_type, {})
    known = AutoConfig.for_model(model_type).to_dict()
    return {key: value for key, value in SMALL.items() if key in known}


def save_pair(folder: Path, model_type: str, layouts: tuple[str, str]) -> list[Path]:
    model = make_model(model_type, **small(model_type))
    paths = []
    for number, layout in enumerate(layouts):
        disturb(model, number)
        paths.append(save(model, folder / f"{number}", layout))
    return paths
