"""Tiny checkpoints for the tests, and independent readers of merged results.

Nothing here uses the worker's reader or writer: results are read by the safetensors library.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA_HEADS: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}
LINEAR_HEADS: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}

# model_type → fields besides TINY, so that every kind of layer occurs.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "olmo_hybrid": {"num_hidden_layers": 4, **LINEAR_HEADS},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1], **MAMBA_HEADS},
    "falcon_h1": {**MAMBA_HEADS, "num_hidden_layers": 2, "mamba_d_ssm": 64, "head_dim": 8},
    "granitemoehybrid": {
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        **MAMBA_HEADS,
    },
    "nemotron_h": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "moe_shared_expert_intermediate_size": 16,
    },
    "qwen3_next": {
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 16,
        **LINEAR_HEADS,
        **EXPERTS,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_ff_dim": 64,
        "block_multiple_of": 8,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba"],
        "hybrid_layer_ids": [2],
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "attention_head_dim": 16,
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
    },
    "mixtral": {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_hidden_layers": 2, **EXPERTS},
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4},
    "t5": {
        "d_model": 32,
        "d_ff": 64,
        "d_kv": 8,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
}


class Rounding(NamedTuple):
    """A float format: the bits of its significand, and the exponent of its smallest step."""

    bits: int
    smallest_step: int


ROUNDING = {
    torch.bfloat16: Rounding(8, -133),
    torch.float16: Rounding(11, -24),
    torch.float32: Rounding(24, -149),
}


def make_model(model_type: str, seed: int = 0, **config: Any) -> Any:
    """Save a bfloat16 model of a type with the random weights that transformers initializes."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    known = ARCHITECTURES.get(model_type, {})
    settings = AutoConfig.for_model(model_type, **{**TINY, **known, **config})
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(settings, dtype=torch.bfloat16)


def disturb(model: Any, seed: int, scale: float = 0.01) -> None:
    """Move every weight a little, as a fine-tune does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator).to(weight.dtype)


def save_fine_tunes(folder: Path, model_type: str, count: int = 3, **config: Any) -> list[Path]:
    model = make_model(model_type, **config)
    paths = []
    for seed in range(count):
        disturb(model, seed)
        paths.append(folder / f"{model_type}-{seed}")
        model.save_pretrained(paths[-1])
    return paths


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load the model, with the report of transformers on its keys."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    seq2seq = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    return model, info


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write tensors over shards in turn; one shard is a single file without an index."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - it has no other way to list them
                assert name not in tensors, f"{name} is in two files"
                tensors[name] = reader.get_tensor(name)
    return tensors


def ulps_from_mean(result: Tensor, inputs: Sequence[Tensor]) -> float:
    """Return the largest distance from the float64 mean, in ulps of the result's dtype."""
    if result.numel() == 0:
        return 0.0
    mean = torch.stack([tensor.double() for tensor in inputs]).mean(0)
    bits, smallest_step = ROUNDING[result.dtype]
    exponents = torch.frexp(mean).exponent - bits
    steps = torch.ldexp(torch.ones_like(mean), exponents.clamp(min=smallest_step))
    return float(((result.double() - mean).abs() / steps).max())
