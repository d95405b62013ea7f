"""Models for scripts/demo: a small hybrid trained on three tasks, a specialist for each.

demo_models.py make base adder reverser counter    trains missing models
demo_models.py show MERGED MODEL…                  loads, counts keys, compares, generates
"""

import copy
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

LETTERS = "0123456789abcdefghijklmnopqrstuvwxyz+=>,;"
SPECIAL = ["<pad>", "<s>", "</s>"]
TEXT_LENGTH = 48
BATCH = 16
BASE_STEPS = 200
SPECIALIST_STEPS = 80


def addition(chance: random.Random) -> str:
    a, b = chance.randrange(50), chance.randrange(50)
    return f"{a}+{b}={a + b};"


def reversal(chance: random.Random) -> str:
    word = "".join(chance.choice("abcdefgh") for _ in range(4))
    return f"{word}>{word[::-1]};"


def counting(chance: random.Random) -> str:
    start = chance.randrange(90)
    return ",".join(str(start + i) for i in range(5)) + ";"


Task = Callable[[random.Random], str]
TASKS: dict[str, Task] = {"adder": addition, "reverser": reversal, "counter": counting}
PROMPTS = {"adder": "7+8=15;20+4=24;12+31=", "reverser": "cafe>efac;bead>", "counter": "41,42,43,"}


def make_tokenizer() -> Any:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_model(tokens: int) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "olmo_hybrid",
        vocab_size=tokens,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def batch(tokenizer: Any, tasks: Sequence[Task], chance: random.Random, size: int) -> Tensor:
    rows = []
    for _ in range(size):
        task, text = chance.choice(tasks), ""
        while len(text) < TEXT_LENGTH:
            text += task(chance)
        rows.append(tokenizer(text[:TEXT_LENGTH])["input_ids"])
    return torch.tensor(rows)


def train(model: Any, tokenizer: Any, tasks: Sequence[Task], steps: int, rate: float) -> None:
    chance = random.Random(steps)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        tokens = batch(tokenizer, tasks, chance, BATCH)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def make(folders: Sequence[Path]) -> None:
    """The first folder is for the base, the others for the specialists that TASKS names."""
    missing = [folder for folder in folders if not folder.is_dir()]
    if not missing:
        print("   (they exist from the last run)")
        return
    started = time.monotonic()
    tokenizer = make_tokenizer()
    base = make_model(len(tokenizer))
    print(
        f"   training a base on all three tasks, {BASE_STEPS} steps (about a minute in all) ...",
        flush=True,
    )
    train(base, tokenizer, list(TASKS.values()), BASE_STEPS, rate=4e-3)
    if folders[0] in missing:
        save(base, tokenizer, missing.pop(0))
    for folder in missing:
        print(f"   training the {folder.name}, {SPECIALIST_STEPS} steps ...", flush=True)
        specialist = copy.deepcopy(base)
        train(specialist, tokenizer, [TASKS[folder.name]], SPECIALIST_STEPS, rate=2e-3)
        save(specialist, tokenizer, folder)
    print(f"   trained in {time.monotonic() - started:.0f} s")


@torch.no_grad()
def losses(folder: Path, tokenizer: Any) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    values = []
    for task in TASKS.values():
        tokens = batch(tokenizer, [task], random.Random(99), 64)
        values.append(float(model(input_ids=tokens, labels=tokens).loss))
    return [*values, sum(values) / len(values)]


def show(merged: Path, parents: Sequence[Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        merged, dtype="auto", output_loading_info=True
    )
    weights = sum(weight.numel() for weight in model.parameters())
    missing, unexpected = len(info["missing_keys"]), len(info["unexpected_keys"])
    print(f"   {type(model).__name__}, {weights:,} parameters in {model.dtype}")
    print(f"   missing keys: {missing}, unexpected keys: {unexpected}")
    if missing or unexpected:
        sys.exit("demo: the merged model does not load cleanly")

    heads = ["additions", "reversals", "counting", "mean"]
    print("\n   loss on     " + "".join(f"{head:>10}" for head in heads))
    for folder in [*parents, merged]:
        print(f"   {folder.name:<12}" + "".join(f"{x:>10.3f}" for x in losses(folder, tokenizer)))

    print()
    for name, prompt in PROMPTS.items():
        tokens = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**tokens, max_new_tokens=8, do_sample=False)
        answer = tokenizer.decode(output[0, tokens["input_ids"].shape[1] :]).partition(";")[0]
        print(f"   {name:<12} {prompt} → {answer}")


if __name__ == "__main__":
    # As fast as more threads for models of this size, also on a busy machine.
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    command, *words = sys.argv[1:]
    if command == "make":
        make([Path(word) for word in words])
    else:
        show(Path(words[0]), [Path(word) for word in words[1:]])
