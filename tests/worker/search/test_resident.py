"""A model in memory that takes merges: its logits are those of the merge that is written."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.errors import InputError, ResultError
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from merge_worker.search.resident import ResidentModel
from support.checkpoint_factory import read_tensors
from support.language_models import loaded, make, reference_losses, write_tokenizer
from support.recipes import run

FAMILIES = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "mixtral": ("MixtralForCausalLM", {}),
    "granitemoe": ("GraniteMoeForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "mamba2": ("Mamba2ForCausalLM", {}),
    "gemma3_text": ("Gemma3ForCausalLM", {}),
}
IDS = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))


def pair(folder: Path, family: str) -> list[Path]:
    name, fields = FAMILIES[family]
    return [make(folder / f"{family}-{i}", name, family, seed=i + 1, **fields) for i in range(2)]


def recipe(models: list[Path], weight: float, method: str = "linear", **more: Any) -> str:
    lines = [f"merge_method: {method}", *(f"{k}: {v}" for k, v in more.items()), "models:"]
    for model, own in zip(models, (weight, 1.0), strict=False):
        lines += [f"- model: {model}", f"  parameters: {{weight: {own}}}"]
    return "\n".join(lines) + "\n"


def planned(text: str) -> Plan:
    return make_plan(parse(text), PlanOptions())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def written(text: str, folder: Path) -> Path:
    (folder / "recipe.yml").write_text(text)
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    assert run("merge", folder / "recipe.yml", out, "--progress", "off") == 0
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_one_merge_after_another(family: str, tmp_path: Path) -> None:
    models = pair(tmp_path, family)
    resident = None
    for weight in (0.5, 2.0, 0.5):
        text = recipe(models, weight)
        plan = planned(text)
        resident = resident or ResidentModel(plan, "cpu")
        assert resident.fits(plan)
        resident.load(plan)
        expected = logits(loaded(written(text, tmp_path)))
        torch.testing.assert_close(logits(resident.model.module), expected, rtol=0, atol=1e-6)


def test_methods_with_several_passes(tmp_path: Path) -> None:
    models = pair(tmp_path, "llama")
    base = make(tmp_path / "base", "LlamaForCausalLM", "llama", seed=9)
    text = recipe(models, 1.0, "ties", base_model=base, parameters="{density: 0.3}")
    resident = ResidentModel(planned(text), "cpu")
    resident.load(planned(text))
    expected = logits(loaded(written(text, tmp_path)))
    torch.testing.assert_close(logits(resident.model.module), expected, rtol=0, atol=1e-6)


def test_perplexity_is_that_of_all_tokens(tmp_path: Path) -> None:
    models = [write_tokenizer(model) for model in pair(tmp_path, "llama")]
    data = tmp_path / "text.txt"
    data.write_text("the cab\n\n" + "a bath " * 400 + "\n\nabc\n\nx\n")
    text = recipe(models, 0.5)
    resident = ResidentModel(planned(text), "cpu")
    resident.load(planned(text))
    model = loaded(written(text, tmp_path))
    nats, count = 0.0, 0
    for sample in data.read_text().split("\n\n"):
        ids = resident.tokenizer(sample.strip("\n"))["input_ids"]
        for first in range(0, len(ids), 1024):
            window = torch.tensor([ids[first : first + 1024]])
            if window.shape[1] > 1:
                losses = reference_losses(model, window)
                nats, count = nats + float(losses.double().sum()), count + losses.numel()
    assert resident.perplexity(data) == pytest.approx(math.exp(nats / count), rel=1e-5)
    (tmp_path / "short.txt").write_text("\n")
    with pytest.raises(InputError, match="no text"):
        resident.perplexity(tmp_path / "short.txt")


def test_another_shape_does_not_fit(tmp_path: Path) -> None:
    models = pair(tmp_path, "llama")
    wide = make(tmp_path / "wide", "LlamaForCausalLM", "llama", intermediate_size=64)
    resident = ResidentModel(planned(recipe(models, 0.5)), "cpu")
    assert resident.fits(planned(recipe(models[:1], 1.0)))
    assert not resident.fits(planned(recipe([wide], 1.0)))
    assert not resident.fits(planned(recipe(models, 0.5, dtype="bfloat16")))


def test_nan_is_refused_and_the_model_stays_usable(tmp_path: Path) -> None:
    models = pair(tmp_path, "llama")
    from safetensors.torch import save_file

    tensors = read_tensors(models[1])
    next(iter(tensors.values())).view(-1)[0] = math.nan
    broken = make(tmp_path / "broken", "LlamaForCausalLM", "llama")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    good = recipe(models, 0.5)
    resident = ResidentModel(planned(good), "cpu")
    with pytest.raises(ResultError, match="NaN or Inf"):
        resident.load(planned(recipe([models[0], broken], 0.5)))
    resident.load(planned(good))
    expected = logits(loaded(written(good, tmp_path)))
    torch.testing.assert_close(logits(resident.model.module), expected, rtol=0, atol=1e-6)
