"""Models of several stacks: what a module of a recipe means."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.structure.selection import tensors_of
from support.checkpoint_factory import write_checkpoint
from support.slice_factory import fault, merge, plain, recipe, source

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
    merged = merge(two_stacks, json.dumps(text))
    assert merged["model.encoder.layers.1.mlp.weight"] == pytest.approx(1.6)
    decoder = [merged[f"model.decoder.layers.{n}.mlp.weight"] for n in range(5)]
    assert decoder == pytest.approx([2.0, 2.1, 2.2, 2.1, 2.2])
    # What no module names would be lost with mergekit.
    assert merged["model.bridge.weight"] == merged["model.embed_tokens.weight"] == 1.0
    config = json.loads((two_stacks / "out" / "config.json").read_text())
    assert (config["encoder_layers"], config["decoder_layers"]) == (2, 5)
    notes = json.loads((two_stacks / "out" / "merge_manifest.json").read_text())["notes"]
    assert any("in none of the modules encoder, decoder; copied from a" in note for note in notes)


def test_modules_that_are_not_there(two_stacks: Path) -> None:
    modules = {"middle": {"models": [{"model": "a"}]}}
    text = json.dumps({"merge_method": "linear", "modules": modules, "parameters": {"weight": 1}})
    assert "no tensor of a has this prefix; its layers are in" in fault(two_stacks, text)
    assert "model.encoder.layers" in fault(two_stacks, text)


def test_vision_towers_are_not_the_layers_that_slices_cut(tmp_path: Path) -> None:
    vision = {f"vision_tower.blocks.{n}.w.weight": torch.full((2,), n / 10) for n in range(7)}
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 7}}
    write_checkpoint(tmp_path / "a", {**plain(1), **vision}, config=config)
    merged = merge(tmp_path, recipe("passthrough", [source("a", 0, 3)], [source("a", 2, 4)]))
    assert merged["vision_tower.blocks.6.w.weight"] == pytest.approx(0.6)
    assert merged["model.layers.4.mlp.weight"] == pytest.approx(1.3)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"text_config": {"num_hidden_layers": 5}, "vision_config": {"depth": 7}}


def test_two_stacks_that_one_number_counts(tmp_path: Path) -> None:
    tensors = {**plain(1, 4, "model.layers."), **plain(1, 4, "model.cross_layers.")}
    write_checkpoint(tmp_path / "a", tensors, config={"num_hidden_layers": 4})
    taken = [{"sources": [source("a", 0, 3)]}, {"sources": [source("a", 1, 4)]}]
    modules = {"model.layers": {"slices": taken}}
    text = {"merge_method": "passthrough", "base_model": "a", "modules": modules}
    assert "counts the layers of model.layers.* and of model.cross_layers.*" in fault(
        tmp_path, json.dumps(text)
    )
    modules["model.cross_layers"] = {"slices": taken}
    merged = merge(tmp_path, json.dumps(text))
    assert merged["model.layers.3.mlp.weight"] == merged["model.cross_layers.3.mlp.weight"] == 1.1
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {"num_hidden_layers": 6}


def test_a_tensor_that_only_the_last_layer_has(tmp_path: Path) -> None:
    tensors = {**plain(1), "model.layers.3.attn.bias": torch.zeros(2)}
    write_checkpoint(tmp_path / "a", tensors, config={"num_hidden_layers": 4})
    assert fault(tmp_path, recipe("passthrough", [source("a", 0, 4)], [source("a", 1, 4)])) == (
        "recipe.yml: model.layers.*: layer 3 cannot be an inner layer, which differs in attn.bias\n"
        "  leave the first and the last layer in their places"
    )
    merged = merge(tmp_path, recipe("passthrough", [source("a", 0, 3)], [source("a", 1, 4)]))
    assert [name for name in merged if name.endswith("bias")] == ["model.layers.5.attn.bias"]


def owners(modules: list[str], names: str) -> dict[str, list[str]]:
    tensors: dict[str, Any] = dict.fromkeys(names.split())
    return {module: list(tensors_of(module, modules, tensors)) for module in modules}


def test_modules_are_words_of_names() -> None:
    names = "model.language_model.layers.0.q model.visual.blocks.0.q lm_head.weight x.encoder_attn"
    assert owners(["text_decoder", "vision_tower"], names) == {
        "text_decoder": ["model.language_model.layers.0.q", "lm_head.weight"],
        "vision_tower": ["model.visual.blocks.0.q"],
    }
    assert owners(["model.visual.blocks"], names)["model.visual.blocks"] == [
        "model.visual.blocks.0.q"
    ]
    assert owners(["encoder"], names) == {"encoder": []}


def test_the_outer_and_longer_words_own_a_tensor() -> None:
    names = "decoder.encoder.x encoder.decoder.x decoder.layers.0.x"
    assert owners(["encoder", "decoder", "decoder.layers"], names) == {
        "encoder": ["encoder.decoder.x"],
        "decoder": ["decoder.encoder.x"],
        "decoder.layers": ["decoder.layers.0.x"],
    }


def test_default_takes_the_rest() -> None:
    names = "a.x b.x"
    assert owners(["default"], names) == {"default": ["a.x", "b.x"]}
    assert owners(["a", "default"], names) == {"a": ["a.x"], "default": ["b.x"]}
