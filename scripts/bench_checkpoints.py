"""Checkpoints of any size for scripts/bench: a llama, or one tensor, written block by block.

The models are what fine-tunes of one base look like: weights of σ 0.02 that differ by σ 0.001.
`--importance DTYPE --method METHOD` adds the file that a method reads beside each model, of the
size of Adam's second moments: squares of σ 1e-7.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_recipes import BY_IMPORTANCE, importance_of
from torch import Tensor

BLOCK = 1 << 22
SIGMA = 0.02
DELTA = 0.001
GRADIENT = 1e-7
HIDDEN_SIZES = (64, 128, 256, 512, 1024, 2048, 3072, 4096, 8192)
SHORT = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# Both sides copy the tokenizer; without one, the peer prints a traceback.
TOKENIZER = {
    "tokenizer.json": {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"},
    },
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}
Shapes = dict[str, tuple[int, ...]]


def llama_config(params: float, dtype: str) -> dict[str, Any]:
    """Dimensions in the usual proportions (2048 wide: 22 layers) that come closest to params."""

    def config(hidden: int) -> dict[str, Any]:
        vocabulary = min(32000, hidden * 16)
        heads = hidden // 64
        key_value = max(1, heads // 8)
        inner = hidden * 11 // 4
        layer = hidden * (2 * hidden + 128 * key_value + 3 * inner + 2)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": max(1, round((params - 2 * vocabulary * hidden) / layer)),
            "num_attention_heads": heads,
            "num_key_value_heads": key_value,
            "head_dim": 64,
            "tie_word_embeddings": False,
            "dtype": dtype,
        }

    def strangeness(config: dict[str, Any]) -> float:
        return abs(math.log(config["num_hidden_layers"] * 93 / config["hidden_size"]))

    return min(map(config, HIDDEN_SIZES), key=strangeness)


def llama_shapes(config: dict[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = config["num_key_value_heads"] * config["head_dim"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        parts: Shapes = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (key_value, hidden),
        }
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in parts.items()}
    return shapes | {
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }


def count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def shards(shapes: Shapes, width: int, shard_bytes: float) -> list[Shapes]:
    dealt: list[Shapes] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = count(shape) * width
        if dealt[-1] and filled + size > shard_bytes:
            dealt.append({})
            filled = 0
        dealt[-1][name] = shape
        filled += size
    return dealt


def header(shapes: Shapes, dtype: str, width: int, kind: str = "") -> bytes:
    metadata = {"format": "pt"} | ({"kind": kind} if kind else {})
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        end = offset + count(shape) * width
        entries[name] = {"dtype": SHORT[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def blocks(
    elements: int, base: torch.Generator, own: torch.Generator, spread: float
) -> Iterator[Tensor]:
    weights, delta = torch.empty(BLOCK), torch.empty(BLOCK)
    for start in range(0, elements, BLOCK):
        size = min(BLOCK, elements - start)
        weights[:size].normal_(std=SIGMA, generator=base)
        delta[:size].normal_(std=spread, generator=own)
        yield weights[:size].add_(delta[:size])


def write_model(folder: Path, number: int, shapes: Shapes, args: argparse.Namespace) -> None:
    dtype = getattr(torch, args.dtype)
    base = torch.Generator().manual_seed(0)
    own = torch.Generator().manual_seed(1 + number)
    dealt = shards(shapes, dtype.itemsize, args.shard_size)
    places = {}
    for index, part in enumerate(dealt, start=1):
        file = f"model-{index:05}-of-{len(dealt):05}.safetensors"
        with (folder / file).open("wb") as sink:
            sink.write(header(part, args.dtype, dtype.itemsize))
            for block in blocks(sum(map(count, part.values())), base, own, args.delta):
                sink.write(block.to(dtype).view(torch.uint8).numpy().tobytes())
        places.update(dict.fromkeys(part, file))
    text = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def write_importance(file: Path, number: int, shapes: Shapes, method: str, dtype: str) -> None:
    """Write one number for each weight, or for each input of the matrices of layers."""
    if method == "regmean":
        layers = {n: shape for n, shape in shapes.items() if ".layers." in n and len(shape) > 1}
        shapes, kind = {name: shape[1:] for name, shape in layers.items()}, "gram"
    else:
        kind = "squared_gradients"
    as_dtype, chance = getattr(torch, dtype), torch.Generator().manual_seed(number)
    elements, gradient = sum(map(count, shapes.values())), torch.empty(BLOCK)
    unfinished = file.with_name(file.name + ".partial")
    with unfinished.open("wb") as sink:
        sink.write(header(shapes, dtype, as_dtype.itemsize, kind))
        for start in range(0, elements, BLOCK):
            values = gradient[: min(BLOCK, elements - start)]
            values.normal_(std=GRADIENT, generator=chance).square_()
            sink.write(values.to(as_dtype).view(torch.uint8).numpy().tobytes())
    unfinished.rename(file)


def make(args: argparse.Namespace) -> list[Path]:
    """Return the models' folders; writes the models unless they exist."""
    config = llama_config(args.params, args.dtype)
    shapes = llama_shapes(config)
    if args.one_tensor:
        config = {"architectures": ["OneTensor"], "model_type": "one_tensor"}
        shapes = {"weight": (max(1, int(args.params) // 4096), 4096)}
    # No plus sign: it separates a model from its adapter in the peer's recipes.
    stem = f"{config['model_type']}-{args.params:.0f}-{args.dtype}-{args.shard_size:.0f}"
    if args.delta != DELTA:
        stem += f"-{args.delta:g}"
    folders = []
    for number in range(args.models):
        folder = args.work / f"{stem}-{number}"
        folders.append(folder)
        if folder.is_dir():
            continue
        print(f"making {folder} ...", file=sys.stderr)
        unfinished = folder.with_name(folder.name + ".partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, content in {"config.json": config, **TOKENIZER}.items():
            (unfinished / name).write_text(json.dumps(content, indent=1), "utf-8")
        write_model(unfinished, number, shapes, args)
        unfinished.rename(folder)
    for method in BY_IMPORTANCE.intersection(args.method.split(",")):
        for number, folder in enumerate(folders):
            file = importance_of(folder, method, args.importance)
            if not file.exists():
                print(f"making {file} ...", file=sys.stderr)
                write_importance(file, number, shapes, method, args.importance)
    total = sum(map(count, shapes.values()))
    print(f"{args.models} × {total / 1e9:.3f} B parameters, {len(shapes)} tensors", file=sys.stderr)
    return folders


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--params", type=float, required=True)
    parser.add_argument("--models", type=int, required=True)
    parser.add_argument("--dtype", choices=SHORT, required=True)
    parser.add_argument("--shard-size", type=float, required=True)
    parser.add_argument("--delta", type=float, default=DELTA)
    parser.add_argument("--one-tensor", action="store_true")
    parser.add_argument("--method", default="")
    parser.add_argument("--importance", choices=["bfloat16", "float32"], default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    for made in make(arguments()):
        print(made)
