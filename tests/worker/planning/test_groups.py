"""Layers picked from models: which tensors end up where, with which values."""

import json
from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import read_tensors, write_checkpoint
from support.slice_factory import fault, merge, plain, plan, recipe, source

CONFIG = {"model_type": "plain", "num_hidden_layers": 4}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate("abc", start=1):
        write_checkpoint(tmp_path / name, plain(number), config=CONFIG)
    return tmp_path


def test_layers_are_renumbered(models: Path) -> None:
    merged = merge(
        models, recipe("passthrough", [source("a", 1, 4)], [source("b", 0, 2)], [source("a", 3, 4)])
    )
    assert [merged[f"model.layers.{n}.mlp.weight"] for n in range(6)] == [
        1.1,
        1.2,
        1.3,
        2.0,
        2.1,
        1.3,
    ]
    assert "model.layers.6.mlp.weight" not in merged
    assert merged["model.embed_tokens.weight"] == 1.0
    assert merged["model.norm.weight"] == merged["lm_head.weight"] == 1.9
    config = json.loads((models / "out" / "config.json").read_text())
    assert config == {**CONFIG, "num_hidden_layers": 6}


def test_heads_come_from_all_sources_of_the_last_slice(models: Path) -> None:
    # mergekit takes as many sources as the first slice has: only `b` here.
    merged = merge(
        models,
        recipe(
            "linear",
            [source("a", 0, 2)],
            [source("b", 2, 4, weight=1), source("c", 2, 4, weight=3)],
        ),
    )
    assert merged["lm_head.weight"] == merged["model.norm.weight"] == 3.65
    assert merged["model.embed_tokens.weight"] == 1.0
    assert merged["model.layers.3.attn.weight"] == 3.05


def test_an_empty_slice_at_an_end_gives_the_tensors_there(models: Path) -> None:
    empty = [source("c", 4, 4)]
    found = merge(models, recipe("passthrough", [source("b", 0, 0)], [source("a", 0, 2)], empty))
    assert found["model.embed_tokens.weight"] == 2.0
    assert found["lm_head.weight"] == found["model.norm.weight"] == 3.9
    assert [found[f"model.layers.{n}.mlp.weight"] for n in range(2)] == [1.0, 1.1]
    assert "model.layers.2.mlp.weight" not in found


@pytest.mark.parametrize("method", ["slerp", "ties", "nuslerp", "model_stock", "task_arithmetic"])
def test_a_source_alone_is_taken_as_it_is(models: Path, method: str) -> None:
    # Without any of the parameters that the method needs.
    merged = merge(models, recipe(method, [source("b", 0, 2)], [source("a", 1, 2)], base_model="a"))
    assert merged["model.layers.1.mlp.weight"] == 2.1
    assert merged["model.layers.2.mlp.weight"] == 1.1
    assert merged["lm_head.weight"] == 1.9


def test_a_source_alone_still_gets_the_dtype(models: Path) -> None:
    merge(models, recipe("slerp", [source("b", 0, 2)], base_model="a", out_dtype="float16"))
    assert {t.dtype for t in read_tensors(models / "out").values()} == {torch.float16}


def test_filters_see_input_names_for_models_and_output_names_for_all(models: Path) -> None:
    normalize = [{"filter": "layers.1.", "value": False}, {"value": True}]
    by_name = [{"filter": "layers.3.", "value": 1}, {"value": 0}]
    merged = merge(
        models,
        recipe(
            "linear",
            [source("a", 0, 1), source("b", 0, 1)],
            [source("a", 3, 4, weight=by_name), source("b", 2, 3, weight=2)],
            parameters={"weight": 1, "normalize": normalize},
        ),
    )
    # a's layer 3 has weight 1; the output is layer 1, where nothing is normalized.
    assert merged["model.layers.1.mlp.weight"] == pytest.approx(1 * 1.3 + 2 * 2.2)
    assert merged["model.layers.0.mlp.weight"] == pytest.approx(1.5)
    # The head is of the last slice, and not in layer 3 of `a`.
    assert merged["lm_head.weight"] == pytest.approx(2.9)


def test_gradients_restart_in_every_slice_and_one_layer_has_the_last_value(models: Path) -> None:
    gradient = {"weight": [0, 1]}
    merged = merge(
        models,
        recipe(
            "linear",
            [source("a", 0, 3, **gradient), source("b", 0, 3, weight=[1, 0])],
            [source("a", 3, 4, **gradient), source("b", 3, 4, weight=[1, 0])],
        ),
    )
    layers = [merged[f"model.layers.{n}.attn.weight"] for n in range(4)]
    assert layers == pytest.approx([2.0, 1.6, 1.2, 1.3])
    # Outside layers t = 0, for the final norm and the head too.
    assert merged["model.embed_tokens.weight"] == pytest.approx(2.0)
    assert merged["lm_head.weight"] == merged["model.norm.weight"] == pytest.approx(2.9)


def test_the_inner_scope_speaks_first(models: Path) -> None:
    slices = [
        {"sources": [source("a", 0, 1, weight=8), source("b", 0, 1)], "parameters": {"weight": 2}},
        {"sources": [source("a", 1, 2), source("b", 1, 2, weight=[{"filter": "mlp", "value": 1}])]},
    ]
    module = {"default": {"slices": slices, "parameters": {"weight": 3}}}
    text = {"merge_method": "linear", "modules": module, "parameters": {"weight": 100}}
    merged = merge(models, json.dumps(text))
    assert merged["model.layers.0.mlp.weight"] == pytest.approx((8 * 1 + 2 * 2) / 10)
    assert merged["model.layers.1.mlp.weight"] == pytest.approx((3 * 1.1 + 1 * 2.1) / 4)
    assert merged["model.layers.1.attn.weight"] == pytest.approx(1.6)


def test_a_slice_has_its_own_base(models: Path) -> None:
    text = recipe(
        "task_arithmetic",
        [source("a", 0, 1), source("b", 0, 1)],
        {"base_model": "b", "sources": [source("a", 1, 2), source("b", 1, 2)]},
        base_model="a",
        parameters={"weight": 0.25},
    )
    merged = merge(models, text)
    assert merged["model.layers.0.mlp.weight"] == pytest.approx(1.25)
    assert merged["model.layers.1.mlp.weight"] == pytest.approx(1.85)


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


def test_prediction_heads_stored_as_layers_move_along(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    write_checkpoint(tmp_path / "a", plain(1), config=config)
    merged = merge(tmp_path, recipe("passthrough", [source("a", 0, 2)], [source("a", 1, 3)]))
    layers = [merged[f"model.layers.{n}.mlp.weight"] for n in range(5)]
    assert layers == pytest.approx([1.0, 1.1, 1.1, 1.2, 1.3])
    assert "has 3 layers" in fault(tmp_path, recipe("passthrough", [source("a", 0, 4)]))
