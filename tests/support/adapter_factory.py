"""Adapters trained, saved, merged and loaded by PEFT."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.checkpoint_factory import TINY, make_model

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_base(folder: Path, model_type: str = "llama", **config: Any) -> Path:
    """Save a float32 base with transformers."""
    make_model(model_type, **config).float().save_pretrained(folder)
    return folder


def save_with_vision(folder: Path, text_folder: Path, model_type: str) -> Path:
    """Save a small model that sees in float32, and its language model apart; return the latter."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    text = {**TINY, "num_hidden_layers": 2, "head_dim": 8}
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "image_size": 28,
        "num_attention_heads": 2,
        "patch_size": 14,
        "depth": 1,
        "embed_dim": 16,
        "num_heads": 2,
    }
    known = {
        "llava": ("llama", "clip_vision_model"),
        "gemma3": ("gemma3_text", "siglip_vision_model"),
    }
    kinds = [{"model_type": kind} for kind in known[model_type]]
    sections = {"text_config": text | kinds[0], "vision_config": vision | kinds[1]}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **sections))
    model.float().save_pretrained(folder)
    alone = AutoModelForCausalLM.from_config(model.config.text_config).float()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.save_pretrained(text_folder)
    return text_folder


def load_base(folder: Path, rows: int | None = None) -> Any:
    """Load a model, with another number of `rows` of tokens if it is given."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if rows:
        model.resize_token_embeddings(rows)
    return model


def adapt(base: Path, out: Path, seed: int = 0, rows: int | None = None, **config: Any) -> Path:
    """Save an adapter on `base` with PEFT, after moving every trainable value.

    It is a LoRA, or rows of tokens alone if the config has `token_indices`.
    """
    from peft import LoraConfig, TrainableTokensConfig, get_peft_model

    kind = TrainableTokensConfig if "token_indices" in config else LoraConfig
    if kind is LoraConfig:
        config.setdefault("r", 4)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_base(base, rows), kind(task_type="CAUSAL_LM", **config))
        shaken(model, seed).save_pretrained(out)
    return out


def shaken(model: Any, seed: int) -> Any:
    """Move every trainable value of a model of PEFT, and return it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(noise, alpha=0.05 if "magnitude" not in name else 0.01)
    return model


def on_base(base: Path, adapter: Path, rows: int | None = None) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_base(base, rows), adapter)


def merged_by_peft(base: Path, adapter: Path, out: Path) -> Path:
    """Save the result of PEFT's `merge_and_unload` in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_base(base, adapter).merge_and_unload().save_pretrained(out)
    return out


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config, load_file(folder / "adapter_model.safetensors")


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
