"""One model on disk in the layouts that converters and versions of transformers write."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import EXPERTS, disturb, make_model, read_tensors, write_checkpoint
from torch import Tensor

Tensors = dict[str, Tensor]


def save(model: Any, folder: Path, layout: str) -> Path:
    """The model below `folder` in a layout of its family."""
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
    found: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith("linear_attn.conv1d.weight"):
            found[name] = tensor
            continue
        place = name.removesuffix("conv1d.weight")
        sizes = [tensors[f"{place}{n}_proj.weight"].shape[0] for n in "qkv"]
        for n, part in zip("qkv", tensor.split(sizes), strict=True):
            found[f"{place}{n}_conv1d.weight"] = part.clone()
    return found


def _norms(linear: bool, attention: str) -> Callable[[Tensors], Tensors]:
    """Other names of norms: in linear-attention layers, and of the norm after attention."""

    def renamed(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in tensors.items():
            layer = re.match(r"model\.layers\.\d+\.", name)
            if layer and f"{layer.group()}linear_attn.A_log" in tensors and linear:
                name = name.replace("input_layernorm", "attention_layer_norm")
                name = name.replace("post_attention_layernorm", "feedforward_layer_norm")
            elif layer:
                name = name.replace("post_attention_layernorm", attention)
            found[name] = tensor
        return found

    return renamed


def olmo(linear: bool, attention: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: _norms(linear, attention)(_apart_convolutions(tensors))


def exporter(tensors: Tensors) -> Tensors:
    """Names that OLMo-core's exporter has for parts of linear attention."""
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

# Layout → what makes it of the tensors as they are in memory; None: as save_pretrained writes it.
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


def save_pair(folder: Path, model_type: str, layouts: tuple[str, str]) -> list[Path]:
    model = make_model(model_type, **MORE.get(model_type, {}))
    paths = []
    for number, layout in enumerate(layouts):
        disturb(model, number)
        paths.append(save(model, folder / f"{number}", layout))
    return paths
