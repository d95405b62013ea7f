"""The small float32 Llamas that the goldens of mergekit are made from: the same bytes anywhere.

Values are sums of random integers scaled by powers of two, so no maths library has a say. Deltas of
fine-tunes are exact in float32 and have few equal magnitudes: where a method cuts by rank, which
of two equal elements goes first is nobody's business.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from checkpoints import write_checkpoint
from torch import Tensor

LAYERS = 4
HIDDEN, MIDDLE, VOCABULARY = 16, 24, 32

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": MIDDLE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def shapes(hidden: int = HIDDEN, middle: int = MIDDLE) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, in the order of its names on disk."""
    half = hidden // 2
    layer = {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, middle),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (half, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (half, hidden),
    }
    layers = {
        f"model.layers.{number}.{name}.weight": shape
        for number in range(LAYERS)
        for name, shape in layer.items()
    }
    outer = {
        "lm_head.weight": (VOCABULARY, hidden),
        "model.embed_tokens.weight": (VOCABULARY, hidden),
    }
    return {**outer, **layers, "model.norm.weight": (hidden,)}


def bells(shape: tuple[int, ...], seed: str) -> Tensor:
    """Nearly normal whole numbers, of standard deviation 37,837, exact in float32."""
    count = 1
    for extent in shape:
        count *= extent
    raw = bytearray(random.Random(seed).randbytes(8 * count))
    halves = torch.frombuffer(raw, dtype=torch.int16).view(count, 4)
    return halves.to(torch.float64).sum(1).view(shape)


def base_tensors() -> dict[str, Tensor]:
    found = {}
    for name, shape in shapes().items():
        values = (bells(shape, f"base {name}") / 2**9).round() / 2**12
        found[name] = (values / 16 + 1 if "norm" in name else values).float()
    return found


def fine_tune(base: dict[str, Tensor], seed: str) -> dict[str, Tensor]:
    """The base moved by about a tenth of itself, partly in a direction that all share."""
    found = {}
    for name, tensor in base.items():
        moved = bells(tuple(tensor.shape), f"{seed} {name}") + bells(tuple(tensor.shape), name) / 2
        # Norms move so little that absolute thresholds of some methods see nothing.
        found[name] = (tensor.double() + moved / 2 ** (27 if "norm" in name else 24)).float()
    return found


def louder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All further from 0, norms from 1: angles and divergences well above float32's rounding."""
    return {n: (t - 1) * 64 + 1 if "norm" in n else t * 64 for n, t in tensors.items()}


def make_models(folder: Path) -> None:
    """`base` with the fine-tunes `a`, `b`, `c`; all of them also as `tied-…` and as `loud-…`."""
    base = base_tensors()
    models = {"base": base, **{seed: fine_tune(base, seed) for seed in "abc"}}
    for name, tensors in models.items():
        write_checkpoint(folder / name, tensors, config=CONFIG)
        write_checkpoint(folder / f"loud-{name}", louder(tensors), config=CONFIG)
        tied = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
        config = {**CONFIG, "tie_word_embeddings": True}
        write_checkpoint(folder / f"tied-{name}", tied, config=config)


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
