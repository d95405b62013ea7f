"""Losses of merged specialists by method, on texts that made none of them: the table of methods.md.

method_losses.py FOLDER [--seeds 3]

For each seed a small llama is trained on three tasks for a while, and a specialist for each task
from there. `fisher` and `regmean` get 64 texts of each task, which are not those that losses are
measured on, `ota` the optimizer.pt of each training. Values of methods are their defaults or common
ones; nothing is tuned.
"""

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import demo_models
import torch
import transformers
from torch import Tensor

from merge_worker import methods

TASKS = demo_models.TASKS
TEXT_LENGTH, BATCH, MEASURED = 48, 16, 128
BASE_STEPS, SPECIALIST_STEPS = 250, 120
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 1},
    "task_arithmetic": {"weight": 0.5},
    "ties": {"weight": 1, "density": 0.5},
    "nde": {},
    "geomedian": {},
    "fisher": {},
    "ota": {},
    "regmean": {},
}
BASED = {"task_arithmetic", "ties", "nde", "ota"}
WORDS = {
    "fisher": "fisher, `importance:` of texts",
    "ota": "ota, `importance:` of training",
    "regmean": "regmean, with `data:`",
}


def text_of(task: Any, chance: random.Random) -> str:
    text = ""
    while len(text) < TEXT_LENGTH:
        text += task(chance)
    return text[:TEXT_LENGTH]


def batch(tokenizer: Any, tasks: list[Any], chance: random.Random, size: int) -> Tensor:
    texts = (text_of(chance.choice(tasks), chance) for _ in range(size))
    return torch.tensor([tokenizer(text)["input_ids"] for text in texts])


def train(
    model: Any, tokenizer: Any, tasks: list[Any], seed: int, steps: int, rate: float
) -> torch.optim.Optimizer:
    """Train `model`, and return the optimizer: two groups, as the Trainer of transformers has."""
    chance, parameters = random.Random(seed), list(model.parameters())
    decayed = {"params": [p for p in parameters if p.ndim > 1]}
    others = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, others])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        tokens = batch(tokenizer, tasks, chance, BATCH)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def make(folder: Path, seed: int) -> None:
    tokenizer = demo_models.make_tokenizer()
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    base = transformers.AutoModelForCausalLM.from_config(config)
    train(base, tokenizer, list(TASKS.values()), 10 * seed + 1, BASE_STEPS, 4e-3)
    demo_models.save(base, tokenizer, folder / "base")
    for number, (name, task) in enumerate(TASKS.items(), 2):
        specialist = copy.deepcopy(base)
        taught = 10 * seed + number
        optimizer = train(specialist, tokenizer, [task], taught, SPECIALIST_STEPS, 2e-3)
        demo_models.save(specialist, tokenizer, folder / name)
        torch.save(optimizer.state_dict(), folder / name / "optimizer.pt")
        chance = random.Random(f"data {seed} {name}")
        texts = [text_of(task, chance) for _ in range(64)]
        (folder / f"{name}.txt").write_text("\n\n".join(texts))


@torch.no_grad()
def losses(folder: Path, seed: int) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    values = []
    for name, task in TASKS.items():
        tokens = batch(tokenizer, [task], random.Random(f"held out {seed} {name}"), MEASURED)
        values.append(float(model(input_ids=tokens, labels=tokens).loss))
    return [*values, sum(values) / len(values)]


def run(*words: object) -> None:
    command = [sys.executable, "-m", "merge_worker", *map(str, words), "--progress", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def merge(folder: Path, method: str) -> Path:
    out = folder / f"merged-{method}"
    entries: list[dict[str, Any]] = []
    for name in TASKS:
        entry: dict[str, Any] = {"model": str(folder / name)}
        if method == "ota":
            entry["importance"] = str(folder / name / "optimizer.pt")
        if method == "fisher":
            file = folder / f"{name}.safetensors"
            if not file.exists():
                run("importance", folder / name, file, "--data", folder / f"{name}.txt")
            entry["importance"] = str(file)
        if method == "regmean":
            entry["data"] = str(folder / f"{name}.txt")
        entries.append(entry)
    recipe = {"merge_method": method, "models": entries, "parameters": METHODS[method]}
    if method in BASED:
        recipe["base_model"] = str(folder / "base")
    path = folder / f"{method}.yml"
    path.write_text(json.dumps(recipe))
    run("merge", path, out, "--dtype", "float32", "--overwrite")
    return out


def table(found: dict[str, list[list[float]]], seeds: int) -> str:
    """Return the table in Markdown: mean and standard deviation over seeds."""
    lines = ["| | " + " | ".join([*TASKS, "mean of the three"]) + " |", "|---|" + "---|" * 4]
    for name, rows in found.items():
        cells = []
        for column in zip(*rows, strict=True):
            spread = f" ± {statistics.stdev(column):.3f}" if seeds > 1 else ""
            cells.append(f"{statistics.mean(column):.3f}{spread}")
        lines.append(f"| {WORDS.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found: dict[str, list[list[float]]] = {}
    for seed in range(given.seeds):
        folder = (given.folder / f"seed-{seed}").resolve()
        if not (folder / "counter.txt").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make(folder, seed)
        for name in ("base", *TASKS):
            found.setdefault(name, []).append(losses(folder / name, seed))
        for method in METHODS:
            if method in methods.names():
                found.setdefault(method, []).append(losses(merge(folder, method), seed))
        print(table(found, seed + 1), flush=True)


if __name__ == "__main__":
    main()
