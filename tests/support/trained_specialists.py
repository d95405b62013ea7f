"""A tiny base trained on three tasks, and a specialist for each whose MLPs alone were trained."""

import copy
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.tiny_mixtures import SHAPE, TASKS, character_tokenizer, task_text

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
}
BASE_STEPS, STEPS, BATCH = 150, 100, 16
HELD_OUT = 10_000
"""Seed of the texts that nothing is trained on."""


def write_trained(folder: Path) -> dict[str, Path]:
    """Train and write the models; returns the folders of `base` and of a model for each task."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SHAPE, **SIZES})
    base = transformers.LlamaForCausalLM(config)
    tokenizer = character_tokenizer()
    _train(base, tokenizer, list(TASKS), BASE_STEPS, 4e-3)
    written = {"base": _save(base, tokenizer, folder / "base")}
    for task in TASKS:
        specialist = copy.deepcopy(base)
        for name, parameter in specialist.named_parameters():
            parameter.requires_grad_(".mlp." in name)
        _train(specialist, tokenizer, [task], STEPS, 2e-3)
        written[task] = _save(specialist, tokenizer, folder / task)
    return written


def _train(model: Any, tokenizer: Any, tasks: list[str], steps: int, rate: float) -> None:
    chance = random.Random(steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        texts = [task_text(chance.choice(tasks), chance) for _ in range(BATCH)]
        tokens = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
        torch.autograd.backward(model(input_ids=tokens, labels=tokens).loss)
        optimizer.step()
        optimizer.zero_grad()


def _save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def held_out_loss(folder: Path, count: int = 30) -> float:
    """Return the mean loss in nats a token over texts of all tasks that no model was trained on."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer, losses = character_tokenizer(), list[Tensor]()
    for number, task in enumerate(TASKS):
        chance = random.Random(HELD_OUT + number)
        texts = [task_text(task, chance) for _ in range(count)]
        tokens = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
        with torch.no_grad():
            losses.append(model(input_ids=tokens, labels=tokens).loss)
    return float(torch.stack(losses).mean())
