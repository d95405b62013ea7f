"""Models for scripts/demo: a small hybrid trained on three tasks, a specialist for each.

demo_models.py make base adder reverser counter    trains missing models
demo_models.py show MERGED BASE MODEL…             loads, counts keys, compares, generates
demo_models.py pages                               writes what the commands of the pages read
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
BASE_STEPS, BASE_RATE = 100, 4e-3
SPECIALIST_STEPS, SPECIALIST_RATE = 60, 1e-3
HELD_OUT = 40
LINKS = {
    "m1": "adder", "m2": "reverser", "m3": "counter", "math": "adder", "code": "reverser",
    "models/base": "base", "models/math": "adder", "models/code": "reverser",
    "models/chat": "counter",
}  # fmt: skip


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


def text_of(task: Task, chance: random.Random) -> str:
    text = ""
    while len(text) < TEXT_LENGTH:
        text += task(chance)
    return text[:TEXT_LENGTH]


def batch(tokenizer: Any, tasks: Sequence[Task], chance: random.Random, size: int) -> Tensor:
    rows = [tokenizer(text_of(chance.choice(tasks), chance))["input_ids"] for _ in range(size)]
    return torch.tensor(rows)


def no_report(done: int, steps: int) -> None:
    """Report nothing."""


def train(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    steps: int,
    rate: float,
    report: Callable[[int, int], None] = no_report,
) -> None:
    chance = random.Random(steps)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        report(step, steps)
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


def reporter(what: str) -> Callable[[int, int], None]:
    """Return a function that keeps a line about a training, or prints one per quarter of it."""
    started, live = time.monotonic(), sys.stdout.isatty()

    def report(done: int, steps: int) -> None:
        if live or done % max(1, steps // 4) == 0:
            spent = time.monotonic() - started
            text = f"   training {what}: step {done} of {steps}, {spent:.0f} s"
            print(f"\r{text}\033[K" if live else text, end="" if live else "\n", flush=True)
        if live and done == steps - 1:
            print()

    return report


def make(folders: Sequence[Path]) -> None:
    """The first folder is for the base, the others for the specialists that TASKS names."""
    missing = [folder for folder in folders if not folder.is_dir()]
    if not missing:
        print("   (they exist from the last run)")
        return
    started = time.monotonic()
    tokenizer = make_tokenizer()
    base = make_model(len(tokenizer))
    every = list(TASKS.values())
    report = reporter("a base on all three tasks")
    train(base, tokenizer, every, BASE_STEPS, BASE_RATE, report)
    if folders[0] in missing:
        save(base, tokenizer, missing.pop(0))
    for folder in missing:
        specialist = copy.deepcopy(base)
        report = reporter(f"the {folder.name} from there")
        train(
            specialist, tokenizer, [TASKS[folder.name]], SPECIALIST_STEPS, SPECIALIST_RATE, report
        )
        save(specialist, tokenizer, folder)
    print(f"   trained in {time.monotonic() - started:.0f} s")


def write_for_pages(folder: Path) -> None:
    """Write heldout.txt, texts of all tasks, and links by the names that the pages use."""
    chance = random.Random(7)
    texts = [text_of(task, chance) for task in TASKS.values() for _ in range(HELD_OUT)]
    (folder / "heldout.txt").write_text("\n\n".join(texts) + "\n")
    (folder / "models").mkdir(exist_ok=True)
    for name, target in LINKS.items():
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..", target) if "/" in name else target)


@torch.no_grad()
def losses(folder: Path, tokenizer: Any) -> list[float]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    values = []
    for task in TASKS.values():
        tokens = batch(tokenizer, [task], random.Random(99), 64)
        values.append(float(model(input_ids=tokens, labels=tokens).loss))
    return [*values, sum(values) / len(values)]


def show(merged: Path, base: Path, specialists: Sequence[Path]) -> None:
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
    means = {}
    for folder in [base, *specialists, merged]:
        values = losses(folder, tokenizer)
        means[folder] = values[-1]
        print(f"   {folder.name:<12}" + "".join(f"{value:>10.3f}" for value in values))
    beaten = [folder.name for folder in [base, *specialists] if means[merged] < means[folder]]
    print(
        f"   Each specialist is best at its own task and has forgotten of the others.\n"
        f"   Look at the mean: the merge is better than {', '.join(beaten) or 'none of them'}."
    )

    print("\n   A minute of training teaches the form of an answer, seldom the answer:")
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
    paths = [Path(word) for word in words]
    if command == "make":
        make(paths)
    elif command == "pages":
        write_for_pages(Path())
    else:
        show(paths[0], paths[1], paths[2:])
