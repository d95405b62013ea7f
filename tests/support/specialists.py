"""A tiny dense model and copies of it with other MLPs, as bases and experts of mixtures."""

from pathlib import Path
from typing import Any

import torch
import yaml

from support.tiny_mixtures import SHAPE, character_tokenizer

PROMPTS = {
    "add": ["1+2=3;", "20+14=34;7+7=14;", "8+8="],
    "reverse": ["abc>cba;", "bead>daeb;"],
    "count": ["1,2,3,4;", "41,42,43,44,45;70,71,72;", "9,10,11"],
}


def write_dense(folder: Path, kind: str = "llama", seed: int = 0, **fields: Any) -> Path:
    """Write a random dense model in float32, with a tokenizer of characters."""
    import transformers

    config = transformers.AutoConfig.for_model(kind, **{**SHAPE, **fields})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def write_expert(base: Path, folder: Path, seed: int) -> Path:
    """Write a copy of a model with random MLPs."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp." in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def moe_recipe(file: Path, base: Path, experts: dict[str, Path], **keys: Any) -> Path:
    """Write the recipe of a mixture of experts, with the prompts that PROMPTS has by their names.

    The keys `prompts` and `negative_prompts` hold lists by names of experts.
    """
    prompts, negative = keys.pop("prompts", PROMPTS), keys.pop("negative_prompts", {})
    listed = []
    for name, path in experts.items():
        entry = {"source_model": str(path), "positive_prompts": prompts[name]}
        listed.append(
            {**entry, **({"negative_prompts": negative[name]} if name in negative else {})}
        )
    document = {"merge_method": "moe", "base_model": str(base), "experts": listed, **keys}
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file
