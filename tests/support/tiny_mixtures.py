"""Tiny mixtures of experts of every class that recipes build, with a tokenizer of characters."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz+=>,;"
SPECIAL = ("<pad>", "<s>", "</s>")
EXPERTS = 4

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
_EXPERTS = {"num_experts": EXPERTS, "num_experts_per_tok": 2}
_SMALL = {"moe_intermediate_size": 24}
_SHARED = {"shared_expert_intermediate_size": 24}
_ATTENTION = {"layer_types": ["full_attention", "full_attention"]}
_DEEPSEEK = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "head_dim": 8,
    **_SMALL,
}
CLASSES: dict[str, dict[str, Any]] = {
    "mixtral": _LOCAL,
    "qwen2_moe": {**_EXPERTS, **_SMALL, **_SHARED, "norm_topk_prob": True},
    "qwen3_moe": {**_EXPERTS, **_SMALL, "norm_topk_prob": True, "head_dim": 8},
    "granitemoe": _LOCAL,
    "granitemoeshared": {**_LOCAL, "shared_intermediate_size": 24},
    "granitemoehybrid": {
        **_LOCAL,
        "shared_intermediate_size": 24,
        "layer_types": ["mamba", "attention"],
        "position_embedding_type": "rope",
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
    },
    "flex_olmo": {**_EXPERTS, "norm_topk_prob": True},
    "lfm2_moe": {**_EXPERTS, **_SMALL, **_ATTENTION, "num_dense_layers": 0},
    "ernie4_5_moe": {
        "moe_num_experts": EXPERTS,
        "moe_k": 2,
        "moe_num_shared_experts": 0,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        **_SMALL,
    },
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": 2, "head_dim": 8},
    "dots1": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
    "qwen3_5_moe_text": {**_EXPERTS, **_SMALL, **_SHARED, **_ATTENTION, "head_dim": 8},
    "cohere2_moe": {
        **_EXPERTS,
        "num_shared_experts": 0,
        "first_k_dense_replace": 0,
        "expert_selection_fn": "softmax",
        "norm_topk_prob": True,
        "head_dim": 8,
    },
    "gpt_oss": {**_LOCAL, "head_dim": 8},
    "olmoe": {**_EXPERTS, "norm_topk_prob": False},
}
"""Fields of their configs beside SHAPE. The last two are classes that recipes do not build."""


def character_tokenizer() -> Any:
    """Return a tokenizer with a token for each of LETTERS."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {word: number for number, word in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def write_mixture(folder: Path, kind: str, seed: int = 0, **fields: Any) -> Path:
    """Write a random model of a class of CLASSES in float32, with its tokenizer."""
    import transformers

    settings = {**SHAPE, **CLASSES[kind], **fields}
    dtype = getattr(torch, settings.pop("dtype", "float32"))
    config = transformers.AutoConfig.for_model(kind, **settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    model.to(dtype).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def addition(chance: random.Random) -> str:
    a, b = chance.randrange(50), chance.randrange(50)
    return f"{a}+{b}={a + b};"


def reversal(chance: random.Random) -> str:
    word = "".join(chance.choice("abcdefgh") for _ in range(4))
    return f"{word}>{word[::-1]};"


def counting(chance: random.Random) -> str:
    start = chance.randrange(90)
    return ",".join(str(start + i) for i in range(5)) + ";"


TASKS: dict[str, Callable[[random.Random], str]] = {
    "add": addition,
    "reverse": reversal,
    "count": counting,
}


def task_text(task: str, chance: random.Random, length: int = 48) -> str:
    """Return a text of one task, cut to `length` characters."""
    text = ""
    while len(text) < length:
        text += TASKS[task](chance)
    return text[:length]


def write_texts(path: Path, count: int = 40, seed: int = 0, length: int = 48) -> Path:
    """Write texts of all tasks in turn as lines of JSON."""
    chance, names = random.Random(seed), list(TASKS)
    texts = [task_text(names[n % len(names)], chance, length) for n in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
