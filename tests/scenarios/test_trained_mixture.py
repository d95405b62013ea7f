"""Three specialists become a mixture that finds the right one, and is better than all it is of."""

import json
import random
from pathlib import Path

import pytest

from support.recipes import average, run
from support.specialists import moe_recipe
from support.tiny_mixtures import TASKS, task_text, write_texts
from support.trained_specialists import HELD_OUT, held_out_loss, write_trained


@pytest.mark.slow
def test_specialists_as_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = write_trained(tmp_path / "models")
    base = models.pop("base")
    prompts = {}
    for name in TASKS:
        chance = random.Random(name)
        prompts[name] = [task_text(name, chance, 24) for _ in range(8)]
    recipe = moe_recipe(tmp_path / "moe.yml", base, models, prompts=prompts, gate_mode="mlp_input")
    moe = tmp_path / "moe"
    assert run("merge", recipe, moe, "--progress", "off") == 0

    words: list[object] = []
    for number, name in enumerate(TASKS):
        chance = random.Random(HELD_OUT + number)
        file = tmp_path / f"{name}.jsonl"
        texts = [{"text": task_text(name, chance)} for _ in range(30)]
        file.write_text("".join(json.dumps(text) + "\n" for text in texts))
        words += ["--texts", f"{name}={file}"]
    capsys.readouterr()
    assert run("routing", moe, *words, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    right = [group["first"][group["expert"]] for group in facts["groups"]]
    assert sum(right) / 3 >= 0.6

    assert average(tmp_path / "average", list(models.values())) == 0
    before = held_out_loss(moe)
    data = write_texts(tmp_path / "texts.jsonl", count=600, seed=7)
    options = ("--data", data, "--steps", "100", "--batch", "16", "--progress", "off")
    assert run("train-routers", moe, *options) == 0
    assert run("verify", moe) == 0
    losses = {"base": held_out_loss(base), "average": held_out_loss(tmp_path / "average")}
    after = held_out_loss(moe)
    print(f"top-1 {right}, losses {losses}, mixture {before:.4f}, trained {after:.4f}")
    assert after < min(losses.values()) and after < before
