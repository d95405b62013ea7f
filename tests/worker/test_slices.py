"""Layers picked from models: which tensors end up where, and that the result loads and runs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ARCHITECTURES, load, read_tensors, save_fine_tunes, write_checkpoint
from merges import run
from torch import Tensor

from worker.errors import InputError, UsageError
from worker.plan import Plan, PlanOptions, make_plan
from worker.recipe import parse

CONFIG = {"model_type": "plain", "num_hidden_layers": 4}


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def plain(value: float, depth: int = 4, stack: str = "model.layers.") -> dict[str, Tensor]:
    """A model whose tensors tell where they are from: model + layer / 10, 0.9 after the layers."""
    layers = {
        f"{stack}{n}.{part}.weight": torch.full((2, 2), value + n / 10)
        for n in range(depth)
        for part in ("attn", "mlp")
    }
    return {
        "model.embed_tokens.weight": torch.full((3, 2), float(value)),
        **layers,
        "model.norm.weight": torch.full((2,), value + 0.9),
        "lm_head.weight": torch.full((3, 2), value + 0.9),
    }


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate("abc", start=1):
        write_checkpoint(tmp_path / name, plain(number), config=CONFIG)
    return tmp_path


def merge(models: Path, text: str, *options: object) -> dict[str, float]:
    """The first element of every tensor of the result."""
    path, out = models / "recipe.yml", models / "out"
    path.write_text(text, encoding="utf-8")
    words = ["--relative-to", models, "--progress", "off", "--threads", 1]
    assert run("merge", path, out, *words, *options) == 0
    return {name: round(float(t.flatten()[0]), 5) for name, t in read_tensors(out).items()}


def plan(models: Path, text: str) -> Plan:
    return make_plan(parse(text, "recipe.yml"), PlanOptions(relative_to=models))


def fault(models: Path, text: str) -> str:
    with pytest.raises((UsageError, InputError)) as caught:
        plan(models, text)
    return str(caught.value)


def source(model: str, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, last], "parameters": parameters}


def recipe(method: str, *slices: Any, **more: Any) -> str:
    listed = [{"sources": s} if isinstance(s, list) else s for s in slices]
    return json.dumps({"merge_method": method, "slices": listed, **more})


def test_layers_are_renumbered(models: Path) -> None:
    found = merge(
        models, recipe("passthrough", [source("a", 1, 4)], [source("b", 0, 2)], [source("a", 3, 4)])
    )
    assert [found[f"model.layers.{n}.mlp.weight"] for n in range(6)] == [
        1.1,
        1.2,
        1.3,
        2.0,
        2.1,
        1.3,
    ]
    assert "model.layers.6.mlp.weight" not in found
    assert found["model.embed_tokens.weight"] == 1.0
    assert found["model.norm.weight"] == found["lm_head.weight"] == 1.9
    config = json.loads((models / "out" / "config.json").read_text())
    assert config == {**CONFIG, "num_hidden_layers": 6}


def test_heads_come_from_all_sources_of_the_last_slice(models: Path) -> None:
    # mergekit takes as many sources as the first slice has: only `b` here.
    found = merge(
        models,
        recipe(
            "linear",
            [source("a", 0, 2)],
            [source("b", 2, 4, weight=1), source("c", 2, 4, weight=3)],
        ),
    )
    assert found["lm_head.weight"] == found["model.norm.weight"] == 3.65
    assert found["model.embed_tokens.weight"] == 1.0
    assert found["model.layers.3.attn.weight"] == 3.05


@pytest.mark.parametrize("method", ["slerp", "ties", "nuslerp", "model_stock", "task_arithmetic"])
def test_a_source_alone_is_taken_as_it_is(models: Path, method: str) -> None:
    # Without any of the parameters that the method needs.
    found = merge(models, recipe(method, [source("b", 0, 2)], [source("a", 1, 2)], base_model="a"))
    assert found["model.layers.1.mlp.weight"] == 2.1
    assert found["model.layers.2.mlp.weight"] == 1.1
    assert found["lm_head.weight"] == 1.9


def test_a_source_alone_still_gets_the_dtype(models: Path) -> None:
    merge(models, recipe("slerp", [source("b", 0, 2)], base_model="a", out_dtype="float16"))
    assert {t.dtype for t in read_tensors(models / "out").values()} == {torch.float16}


def test_filters_see_input_names_for_models_and_output_names_for_all(models: Path) -> None:
    normalize = [{"filter": "layers.1.", "value": False}, {"value": True}]
    by_name = [{"filter": "layers.3.", "value": 1}, {"value": 0}]
    found = merge(
        models,
        recipe(
            "linear",
            [source("a", 0, 1), source("b", 0, 1)],
            [source("a", 3, 4, weight=by_name), source("b", 2, 3, weight=2)],
            parameters={"weight": 1, "normalize": normalize},
        ),
    )
    # a's layer 3 has weight 1; the output is layer 1, where nothing is normalised.
    assert found["model.layers.1.mlp.weight"] == pytest.approx(1 * 1.3 + 2 * 2.2)
    assert found["model.layers.0.mlp.weight"] == pytest.approx(1.5)
    # The head is of the last slice, and not in layer 3 of `a`.
    assert found["lm_head.weight"] == pytest.approx(2.9)


def test_gradients_restart_in_every_slice_and_one_layer_has_the_last_value(models: Path) -> None:
    gradient = {"weight": [0, 1]}
    found = merge(
        models,
        recipe(
            "linear",
            [source("a", 0, 3, **gradient), source("b", 0, 3, weight=[1, 0])],
            [source("a", 3, 4, **gradient), source("b", 3, 4, weight=[1, 0])],
        ),
    )
    layers = [found[f"model.layers.{n}.attn.weight"] for n in range(4)]
    assert layers == pytest.approx([2.0, 1.6, 1.2, 1.3])
    # Outside layers t = 0, for the final norm and the head too.
    assert found["model.embed_tokens.weight"] == pytest.approx(2.0)
    assert found["lm_head.weight"] == found["model.norm.weight"] == pytest.approx(2.9)


def test_the_inner_scope_speaks_first(models: Path) -> None:
    slices = [
        {"sources": [source("a", 0, 1, weight=8), source("b", 0, 1)], "parameters": {"weight": 2}},
        {"sources": [source("a", 1, 2), source("b", 1, 2, weight=[{"filter": "mlp", "value": 1}])]},
    ]
    module = {"default": {"slices": slices, "parameters": {"weight": 3}}}
    text = {"merge_method": "linear", "modules": module, "parameters": {"weight": 100}}
    found = merge(models, json.dumps(text))
    assert found["model.layers.0.mlp.weight"] == pytest.approx((8 * 1 + 2 * 2) / 10)
    assert found["model.layers.1.mlp.weight"] == pytest.approx((3 * 1.1 + 1 * 2.1) / 4)
    assert found["model.layers.1.attn.weight"] == pytest.approx(1.6)


def test_a_slice_has_its_own_base(models: Path) -> None:
    text = recipe(
        "task_arithmetic",
        [source("a", 0, 1), source("b", 0, 1)],
        {"base_model": "b", "sources": [source("a", 1, 2), source("b", 1, 2)]},
        base_model="a",
        parameters={"weight": 0.25},
    )
    found = merge(models, text)
    assert found["model.layers.0.mlp.weight"] == pytest.approx(1.25)
    assert found["model.layers.1.mlp.weight"] == pytest.approx(1.85)


def test_a_model_may_be_merged_with_other_layers_of_itself(models: Path) -> None:
    text = recipe("linear", [source("a", 0, 2), source("a", 2, 4)], parameters={"weight": 1})
    assert merge(models, text)["model.layers.1.attn.weight"] == pytest.approx(1.2)


def test_layers_that_are_not_there(models: Path) -> None:
    text = """merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources:
    - model: b
      layer_range: [3, 9]
"""
    assert fault(models, text) == (
        "recipe.yml:5: slices[1].sources[0].layer_range: [3, 9], but b has 4 layers "
        "(model.layers.0 to 3)"
    )


def test_two_spellings_of_a_folder_are_one_model(models: Path) -> None:
    text = (
        "{merge_method: task_arithmetic, base_model: ./a, models: [a, b], parameters: {weight: 1}}"
    )
    assert [len(step.sources) for step in plan(models, text).steps[:2]] == [2, 2]
    assert "listed twice" in fault(models, "{merge_method: linear, models: [a, ./a]}")


def test_different_slices_are_different_merges(models: Path) -> None:
    texts = (recipe("passthrough", [source("a", 0, 2)], [source("a", n, n + 2)]) for n in (0, 1, 2))
    assert len({plan(models, text).key for text in texts}) == 3


TWO_STACKS = {"model_type": "two", "num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 3}


@pytest.fixture
def two_stacks(tmp_path: Path) -> Path:
    for value, name in enumerate("ab", start=1):
        tensors = {
            **plain(value, 2, "model.encoder.layers."),
            **plain(value, 3, "model.decoder.layers."),
            "model.bridge.weight": torch.full((2,), float(value)),
        }
        config = {**TWO_STACKS, "is_encoder_decoder": True}
        write_checkpoint(tmp_path / name, tensors, config=config)
    return tmp_path


def test_several_stacks_need_modules(two_stacks: Path) -> None:
    text = recipe("passthrough", [source("a", 0, 2)])
    assert fault(two_stacks, text) == (
        "recipe.yml: a has 2 stacks of layers (model.decoder.layers.* 3, "
        "model.encoder.layers.* 2); say under 'modules:' which one each of the slices cuts"
    )


def test_modules(two_stacks: Path) -> None:
    modules = {
        "encoder": {"models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}},
        "decoder": {"slices": [{"sources": [source("b", 0, 3)]}, {"sources": [source("b", 1, 3)]}]},
    }
    text = {"merge_method": "linear", "modules": modules, "base_model": "a"}
    found = merge(two_stacks, json.dumps(text))
    assert found["model.encoder.layers.1.mlp.weight"] == pytest.approx(1.6)
    decoder = [found[f"model.decoder.layers.{n}.mlp.weight"] for n in range(5)]
    assert decoder == pytest.approx([2.0, 2.1, 2.2, 2.1, 2.2])
    # What no module names would be lost with mergekit.
    assert found["model.bridge.weight"] == found["model.embed_tokens.weight"] == 1.0
    config = json.loads((two_stacks / "out" / "config.json").read_text())
    assert (config["encoder_layers"], config["decoder_layers"]) == (2, 5)
    notes = json.loads((two_stacks / "out" / "merge_manifest.json").read_text())["notes"]
    assert any("in none of the modules encoder, decoder; copied from a" in note for note in notes)


def test_modules_that_are_not_there(two_stacks: Path) -> None:
    modules = {"middle": {"models": [{"model": "a"}]}}
    text = json.dumps({"merge_method": "linear", "modules": modules, "parameters": {"weight": 1}})
    assert "nothing in a has this name; its layers are in" in fault(two_stacks, text)
    assert "model.encoder.layers" in fault(two_stacks, text)


def test_prediction_heads_stored_as_layers_move_along(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    write_checkpoint(tmp_path / "a", plain(1), config=config)
    found = merge(tmp_path, recipe("passthrough", [source("a", 0, 2)], [source("a", 1, 3)]))
    layers = [found[f"model.layers.{n}.mlp.weight"] for n in range(5)]
    assert layers == pytest.approx([1.0, 1.1, 1.1, 1.2, 1.3])
    assert "has 3 layers" in fault(tmp_path, recipe("passthrough", [source("a", 0, 4)]))


def test_vision_towers_are_not_the_layers_that_slices_cut(tmp_path: Path) -> None:
    vision = {f"vision_tower.blocks.{n}.w.weight": torch.full((2,), n / 10) for n in range(7)}
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 7}}
    write_checkpoint(tmp_path / "a", {**plain(1), **vision}, config=config)
    found = merge(tmp_path, recipe("passthrough", [source("a", 0, 3)], [source("a", 2, 4)]))
    assert found["vision_tower.blocks.6.w.weight"] == pytest.approx(0.6)
    assert found["model.layers.4.mlp.weight"] == pytest.approx(1.3)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"text_config": {"num_hidden_layers": 5}, "vision_config": {"depth": 7}}


# Hybrids and mixtures whose config speaks of single layers, and layers to take of two models.
STACKED: dict[str, tuple[int, int, int, int]] = {
    "llama": (0, 2, 0, 2),
    "olmo_hybrid": (0, 3, 1, 4),
    "jamba": (0, 4, 0, 4),
    "bamba": (0, 2, 1, 3),
    "granitemoehybrid": (0, 2, 1, 3),
    "nemotron_h": (0, 3, 1, 4),
    "qwen3_next": (0, 3, 1, 4),
    "lfm2": (0, 3, 1, 3),
    "falcon_h1": (0, 2, 1, 2),
}


@pytest.mark.parametrize("model_type", STACKED)
def test_a_stacked_hybrid_loads_and_runs(model_type: str, tmp_path: Path) -> None:
    paths = save_fine_tunes(tmp_path, model_type, 2)
    first, last, again, end = STACKED[model_type]
    text = recipe(
        "passthrough",
        [source(f"{model_type}-0", first, last)],
        [source(f"{model_type}-1", again, end)],
    )
    merge(tmp_path, text)
    found, (lower, upper) = read_tensors(tmp_path / "out"), map(read_tensors, paths)
    taken = 0
    for name, tensor in found.items():
        number = next((int(word) for word in name.split(".") if word.isdigit()), None)
        if number is None:
            continue
        taken += 1
        origin = lower if number < last else upper
        old = number if number < last else number - last + again
        assert torch.equal(tensor, origin[name.replace(f".{number}.", f".{old}.", 1)]), name
    assert taken
    model, info = load(tmp_path / "out")
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    tokens = torch.arange(3, 19)[None]
    assert torch.isfinite(model(input_ids=tokens).logits).all()
    last_norm = [n for n in found if "norm" in n and not any(w.isdigit() for w in n.split("."))]
    assert last_norm and all(torch.equal(found[n], upper[n]) for n in last_norm)


def test_what_cannot_follow_is_named(tmp_path: Path) -> None:
    assert "jamba" in ARCHITECTURES
    save_fine_tunes(tmp_path, "jamba", 1)
    text = recipe("passthrough", [source("jamba-0", 0, 3)], [source("jamba-0", 1, 4)])
    assert "config.json: attn_layer_period cannot follow the layers taken" in fault(tmp_path, text)
    save_fine_tunes(tmp_path, "zamba2", 1)
    text = recipe("passthrough", [source("zamba2-0", 0, 3)])
    assert "config.json: num_mem_blocks cannot follow" in fault(tmp_path, text)
