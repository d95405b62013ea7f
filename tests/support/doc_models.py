"""The models of docs/checkpoints.md, as small as possible."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.checkpoint_factory import read_tensors
from support.fake_hub import Hub
from support.tokenizer_factory import CHAT, LETTERS, MERGED, SPECIAL, bpe, save_model, write_json

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
)
BLOCK = 8


def make(folder: Path, hub: Hub) -> None:
    """Write `models/…`, `adapters/…` and the repositories of the Hub."""
    models = folder / "models"
    plain = [*SPECIAL, *LETTERS, *MERGED]
    save_model(models / "base", bpe(plain))
    for number, name in enumerate(("math", "code"), 1):
        shutil.copytree(models / "base", models / name)
        _rewrite(models / name, _moved(read_tensors(models / "base"), number))
    save_model(models / "chat", bpe(plain, special=CHAT))
    _rewrite(models / "chat", _moved(_longer(read_tensors(models / "base"), len(CHAT)), 3))
    (models / "chat" / "chat_template.jinja").write_text(CHATML)
    math = read_tensors(models / "math")
    _like(models / "fused", models / "math", _fused(math))
    _like(models / "renamed", models / "math", {_other_name(n): t for n, t in math.items()})
    seeing = {f"model.language_{n}" if n.startswith("model") else n: t for n, t in math.items()}
    seeing["model.visual.patch.weight"] = torch.ones(4, 8)
    _like(models / "seeing", models / "math", seeing)
    _in_fp8(models)
    _pickled(models)
    save_file(math, folder / "step-100.safetensors")
    save_file(read_tensors(models / "code"), folder / "step-200.safetensors")
    for number, step in enumerate((1000, 2000, 4000, 5000), 10):
        _like(folder / "run" / f"step{step}-hf", models / "math", _moved(math, number))
    (folder / "run" / "step6000-hf").mkdir()
    for number, name in enumerate(("sql", "poems"), 4):
        _adapter(folder / "adapters" / name, number)
    for name in ("base", "math", "code"):
        hub.add(f"example/{name}", models / name)


def _moved(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {
        n: t + 0.02 * t.std() * torch.randn(t.shape, generator=chance) if t.ndim == 2 else t
        for n, t in tensors.items()
    }


def _longer(tensors: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    more = {n: torch.cat([t, t[-rows:]]) for n, t in tensors.items() if "embed" in n or "head" in n}
    return tensors | more


def _rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _like(folder: Path, model: Path, tensors: dict[str, Tensor]) -> None:
    """Write the other files of a model with these weights."""
    shutil.copytree(model, folder)
    _rewrite(folder, {name: tensor.contiguous() for name, tensor in tensors.items()})


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    fused = dict(tensors)
    for place, words in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
        inner = place.partition(".")[0]
        parts = [fused.pop(f"model.layers.0.{inner}.{w}_proj.weight") for w in words]
        fused[f"model.layers.0.{place}.weight"] = torch.cat(parts)
    return fused


def _other_name(name: str) -> str:
    return name.replace("self_attn", "attention").replace("mlp.down_proj", "mlp.w2")


def _in_fp8(models: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors(models / "code").items():
        tensors[name] = tensor.bfloat16()
        if tensor.ndim == 2 and "layers" in name:
            tensors[name] = (tensor * 2**9).to(torch.float8_e4m3fn)
            grid = [-(-side // BLOCK) for side in tensor.shape]
            tensors[f"{name}_scale_inv"] = torch.full(grid, 2.0**-9)
    _like(models / "fp8", models / "code", tensors)
    config = json.loads((models / "fp8" / "config.json").read_text())
    quantized = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    config |= {"torch_dtype": "bfloat16", "quantization_config": quantized}
    write_json(models / "fp8" / "config.json", config)


def _pickled(models: Path) -> None:
    shutil.copytree(models / "code", models / "old")
    (models / "old" / "model.safetensors").unlink()
    torch.save(read_tensors(models / "code"), models / "old" / "pytorch_model.bin")


def _adapter(folder: Path, seed: int) -> None:
    """Write an adapter of rank 2 on the attention of `models/base`, as PEFT saves it."""
    folder.mkdir(parents=True)
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for word, rows in (("q", 8), ("v", 4)):
        place = f"base_model.model.model.layers.0.self_attn.{word}_proj"
        tensors[f"{place}.lora_A.weight"] = torch.randn(2, 8, generator=chance) / 8
        tensors[f"{place}.lora_B.weight"] = torch.randn(rows, 2, generator=chance) / 8
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "v_proj"],
            "base_model_name_or_path": "models/base",
        },
    )
