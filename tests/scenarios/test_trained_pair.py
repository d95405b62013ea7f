"""Two specialists of one base, merged, do better on both tasks together."""

import copy
import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from merge_worker.cli import main

RECIPES = {
    "linear": "models: [{model: adder, parameters: {weight: 1}}, "
    "{model: reverser, parameters: {weight: 1}}]",
    "slerp": "base_model: adder\nmodels: [adder, reverser]\nparameters: {t: 0.5}",
    "task_arithmetic": "base_model: base\nmodels: [adder, reverser]\n"
    "parameters: {weight: 0.5, lambda: 1.0}",
    "ties": "base_model: base\nmodels: [adder, reverser]\n"
    "parameters: {weight: 1, density: 0.5, lambda: 0.5}",
}

Losses = Callable[[str], float]


def demo_models() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "scripts" / "demo_models.py"
    spec = importlib.util.spec_from_file_location("demo_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_llama(tokens: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokens, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train base, adder and reverser in float32."""
    demo, root = demo_models(), tmp_path_factory.mktemp("trained")
    tokenizer = demo.make_tokenizer()
    tasks = {"adder": demo.addition, "reverser": demo.reversal}
    base = small_llama(len(tokenizer))
    demo.train(base, tokenizer, list(tasks.values()), 90, rate=4e-3)
    base.save_pretrained(root / "base")
    for name, task in tasks.items():
        specialist = copy.deepcopy(base)
        demo.train(specialist, tokenizer, [task], 30, rate=2e-3)
        specialist.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def mean_loss(folder: Path) -> Losses:
    demo = demo_models()
    tokenizer = demo.make_tokenizer()

    @torch.no_grad()
    def of(name: str) -> float:
        model = transformers.LlamaForCausalLM.from_pretrained(folder / name)
        total = 0.0
        for task in (demo.addition, demo.reversal):
            tokens = demo.batch(tokenizer, [task], random.Random(99), 128)
            total += float(model(input_ids=tokens, labels=tokens).loss) / 2
        return total

    return of


@pytest.mark.slow
@pytest.mark.parametrize("method", RECIPES)
def test_the_merge_is_better_than_its_inputs(method: str, folder: Path, mean_loss: Losses) -> None:
    recipe = folder / f"{method}.yml"
    recipe.write_text(f"merge_method: {method}\n{RECIPES[method]}\n")
    out = folder / f"merged-{method}"
    words = ["merge", str(recipe), str(out), "--relative-to", str(folder), "--progress", "off"]
    assert main(words) == 0
    merged = mean_loss(out.name)
    others = {name: mean_loss(name) for name in ("base", "adder", "reverser")}
    assert all(merged < loss for loss in others.values()), (merged, others)


@pytest.mark.slow
def test_the_merge_suggested_by_compare(
    folder: Path, mean_loss: Losses, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder / name) for name in ("adder", "reverser")]
    assert main(["compare", *words, "--base", str(folder / "base"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["mergeable"] and facts["advice"]["warnings"] == []
    # The task vectors are nearly orthogonal, so half of the signs conflict.
    (pair,) = facts["total"]["pairs"]
    assert abs(pair["cosine"]) < 0.4 and 0.3 < pair["sign_conflicts"] < 0.6
    recipe, out = folder / "suggested.yml", folder / "suggested"
    recipe.write_text(facts["advice"]["recipe"])
    assert main(["merge", str(recipe), str(out), "--progress", "off"]) == 0
    others = {name: mean_loss(name) for name in ("base", "adder", "reverser")}
    assert all(mean_loss("suggested") < loss for loss in others.values()), others
