"""Tiny models with tokenizers that `try` can let speak, and ways to break them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from support.checkpoint_factory import make_model, read_tensors
from support.tokenizer_factory import CHAT, LETTERS, MERGED, SPECIAL, bpe, save_tokenizer

TOKENS = [*SPECIAL, *LETTERS, *MERGED]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def save_spoken(folder: Path, model_type: str = "llama", template: str = "", **config: Any) -> Path:
    """Save a random model of a type, with a tokenizer whose ids are all in its embedding."""
    model = make_model(model_type, **config)
    model.save_pretrained(folder)
    settings = {"chat_template": template} if template else {}
    save_tokenizer(folder, bpe(TOKENS, special=CHAT), **settings)
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def change_tensors(
    folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
) -> None:
    """Write the tensors of a model of one file again, changed."""
    changed = {name: one.contiguous() for name, one in change(read_tensors(folder)).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    return lambda tensors: {new if n == old else n: one for n, one in tensors.items()}


def without(name: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    return lambda tensors: {n: one for n, one in tensors.items() if n != name}


def with_nan(name: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[name].view(-1)[3] = torch.nan
        return tensors

    return change


def transposed(name: str) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]]:
    return lambda tensors: {n: one.T if n == name else one for n, one in tensors.items()}
