"""Small Llamas as experts, written without transformers, and mixtures of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from merge_worker.cli import main

from .checkpoint_factory import write_checkpoint
from .tokenizer_factory import bpe, save_tokenizer

HIDDEN, WIDTH, LAYERS, ROWS = 8, 16, 2, 12
TOKENS = ("<s>", "</s>", "<unk>", "a", "b", "c", "d", " ", "e", "f", "g", "h")
MLP = ("gate_proj", "up_proj", "down_proj")


def llama_tensors(
    seed: int, hidden: int = HIDDEN, width: int = WIDTH, layers: int = LAYERS, rows: int = ROWS
) -> dict[str, torch.Tensor]:
    """Return random bfloat16 tensors of a Llama."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        shapes |= {f"{prefix}mlp.{n}.weight": (width, hidden) for n in MLP[:2]}
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, width)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{norm}.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16)
        for name, shape in shapes.items()
    }


def write_llama(
    folder: Path,
    seed: int = 0,
    bos: bool = False,
    tokens: Sequence[str] = TOKENS,
    tuned: bool = False,
    **sizes: int,
) -> Path:
    """Write a Llama with a tokenizer of single letters; one with `bos` begins each text by <s>.

    `tuned`: that of seed 0, with every weight moved by some percent.
    """
    tensors = llama_tensors(seed, **sizes)
    if tuned:
        base = llama_tensors(0, **sizes)
        tensors = {name: base[name] + 0.05 * tensors[name] for name in base}
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": sizes.get("hidden", HIDDEN),
        "intermediate_size": sizes.get("width", WIDTH),
        "num_hidden_layers": sizes.get("layers", LAYERS),
        "num_attention_heads": 2,
        "vocab_size": sizes.get("rows", ROWS),
        "rope_theta": 10000.0,
    }
    write_checkpoint(folder, tensors, config=config)
    settings: dict[str, Any] = {} if bos else {"bos_token": None}
    save_tokenizer(folder, bpe(tokens), **settings)
    return folder


def recipe(
    folder: Path, base: str, experts: Sequence[str | Mapping[str, Any]], **keys: Any
) -> Path:
    """Write a recipe whose models are in `folder`; random gates unless `keys` say otherwise."""
    path = folder / "moe.yml"
    listed = [e if isinstance(e, Mapping) else {"source_model": e} for e in experts]
    body = {"base_model": base, "gate_mode": "random", "experts": listed, **keys}
    path.write_text(json.dumps(body))
    return path


def build(path: Path, out: Path, *options: object) -> int:
    """Merge a recipe beside its models; return the exit code."""
    words = ["merge", path, out, "--relative-to", path.parent, "--progress", "off", *options]
    return main(list(map(str, words)))
