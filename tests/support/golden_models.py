"""The small float32 Llamas behind the goldens of mergekit: the same bytes on every machine.

Values are sums of random integers scaled by powers of two, independent of any math library. Deltas
of fine-tunes are exact in float32 and have few equal magnitudes, as the order of equal elements is
undefined where a method cuts by rank.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.adapter_factory import write_adapter
from support.checkpoint_factory import write_checkpoint

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
    """Return the shapes of all tensors, in the order of their names on disk."""
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
    """Return nearly normal integers with standard deviation 37,837, exact in float32."""
    count = 1
    for extent in shape:
        count *= extent
    raw = bytearray(random.Random(seed).randbytes(8 * count))
    halves = torch.frombuffer(raw, dtype=torch.int16).view(count, 4)
    return halves.to(torch.float64).sum(1).view(shape)


def base_tensors() -> dict[str, Tensor]:
    tensors = {}
    for name, shape in shapes().items():
        values = (bells(shape, f"base {name}") / 2**9).round() / 2**12
        tensors[name] = (values / 16 + 1 if "norm" in name else values).float()
    return tensors


def fine_tune(base: dict[str, Tensor], seed: str) -> dict[str, Tensor]:
    """Return the base moved by about a tenth of itself, partly in a direction all share."""
    tensors = {}
    for name, tensor in base.items():
        moved = bells(tuple(tensor.shape), f"{seed} {name}") + bells(tuple(tensor.shape), name) / 2
        # Norms move less than the absolute thresholds of some methods.
        tensors[name] = (tensor.double() + moved / 2 ** (27 if "norm" in name else 24)).float()
    return tensors


def louder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale values, norms around 1, so that angles and divergences exceed float32 rounding."""
    return {n: (t - 1) * 64 + 1 if "norm" in n else t * 64 for n, t in tensors.items()}


# Kinds of PEFT adapters: rank and alpha patterns; rsLoRA; DoRA and modules_to_save.
ADAPTERS: dict[str, dict[str, Any]] = {
    "patterns": {
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
        "lora_alpha": 6,
        "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 5},
        "alpha_pattern": {"layers.2.self_attn.o_proj": 12},
    },
    "rslora": {"target_modules": r".*\.mlp\.(up|down)_proj", "use_rslora": True, "r": 3},
    "dora": {
        "target_modules": ["q_proj", "gate_proj"],
        "use_dora": True,
        "modules_to_save": ["lm_head", "model.norm"],
    },
}


def make_adapters(folder: Path, base: dict[str, Tensor]) -> None:
    """Write `lora-…` for each of ADAPTERS, as PEFT saves them."""
    for kind, given in ADAPTERS.items():
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, **given}
        tensors: dict[str, Tensor] = {}
        for name, tensor in base.items():
            for end, trained in _trained(config, name.removesuffix(".weight"), tensor, kind):
                tensors[f"base_model.model.{name.removesuffix('.weight')}.{end}"] = trained.float()
        write_adapter(folder / f"lora-{kind}", config, tensors)


def _trained(
    config: dict[str, Any], module: str, weight: Tensor, seed: str
) -> Iterator[tuple[str, Tensor]]:
    """Return the adapter's tensors of a module, in float64, of values exact in float32."""
    rows, seed = len(weight), f"{seed} {module}"
    if module in config.get("modules_to_save", ()):
        yield "weight", weight.double() + bells(tuple(weight.shape), seed) / 2**22
    elif _meant(module, config["target_modules"]):
        rank = _pattern(config, module)
        yield "lora_A.weight", bells((rank, weight.shape[1]), f"{seed} A") / 2**18
        yield "lora_B.weight", bells((rows, rank), f"{seed} B") / 2**18
        if config.get("use_dora"):
            lengths = weight.double().norm(dim=1) + bells((rows,), seed) / 2**20
            yield "lora_magnitude_vector", (lengths * 2**10).round() / 2**10


def _meant(module: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return module.rpartition(".")[2] in targets


def _pattern(config: dict[str, Any], module: str) -> int:
    patterns: dict[str, int] = config.get("rank_pattern", {})
    ranks = (rank for p, rank in patterns.items() if re.fullmatch(rf"(.*\.)?{p}", module))
    return next(ranks, int(config["r"]))


def make_models(folder: Path) -> None:
    """Write `base` with the fine-tunes `a`, `b`, `c`, all also as `tied-…` and as `loud-…`, and
    adapters of the base."""
    base = base_tensors()
    make_adapters(folder, base)
    models = {"base": base, **{seed: fine_tune(base, seed) for seed in "abc"}}
    for name, tensors in models.items():
        write_checkpoint(folder / name, tensors, config=CONFIG)
        write_checkpoint(folder / f"loud-{name}", louder(tensors), config=CONFIG)
        tied = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
        config = {**CONFIG, "tie_word_embeddings": True}
        write_checkpoint(folder / f"tied-{name}", tied, config=config)


SIXTEEN_BITS = ("linear", "slerp", "task_arithmetic", "ties", "model_stock", "karcher", "sce")
"""Recipes whose results of bfloat16 models are kept as well."""


def make_models_of_16_bits(folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the base and its fine-tunes rounded to bfloat16, stored in `dtype`."""
    base = base_tensors()
    config = {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}
    for name, tensors in {"base": base, **{seed: fine_tune(base, seed) for seed in "abc"}}.items():
        for kind, values in (("", tensors), ("loud-", louder(tensors))):
            rounded = {key: tensor.bfloat16().to(dtype) for key, tensor in values.items()}
            write_checkpoint(folder / f"{kind}{name}", rounded, config=config)
