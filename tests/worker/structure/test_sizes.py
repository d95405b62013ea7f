"""Models of other width or depth are answered by their sizes, whatever else differs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.errors import InputError
from merge_worker.planning.options import MatchOptions, PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from merge_worker.recipe.shorthand import direct_recipe
from support.checkpoint_factory import write_checkpoint


def model(
    folder: Path, hidden: int = 4, layers: int = 2, *, config: bool = True, **fields: Any
) -> Path:
    """Write a model with embeddings, queries, keys and norms, and what the config says of them."""
    inner = fields.get("intermediate_size", 6)
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": torch.ones(fields.get("vocab_size", 8), hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for n in range(layers):
        place = f"model.layers.{n}"
        tensors[f"{place}.self_attn.q_proj.weight"] = torch.ones(hidden, hidden)
        tensors[f"{place}.self_attn.k_proj.weight"] = torch.ones(fields.get("keys", 2), hidden)
        tensors[f"{place}.self_attn.v_proj.weight"] = torch.ones(fields.get("keys", 2), hidden)
        tensors[f"{place}.mlp.up_proj.weight"] = torch.ones(inner, hidden)
        tensors[f"{place}.mlp.gate_proj.weight"] = torch.ones(inner, hidden)
    said = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": inner}
    said |= {"num_key_value_heads": fields["heads"]} if "heads" in fields else {}
    return write_checkpoint(folder, tensors, config=said if config else None)


def plan(folder: Path, rules: MatchOptions | None = None, text: str = "") -> Plan:
    text = text or direct_recipe(("m1", "m2"))
    return make_plan(parse(text), PlanOptions(relative_to=folder, matching=rules or MatchOptions()))


def fault(folder: Path, rules: MatchOptions | None = None, text: str = "") -> str:
    with pytest.raises(InputError) as caught:
        plan(folder, rules, text)
    assert "--missing copy" not in str(caught.value) and "--surplus" not in str(caught.value)
    return str(caught.value)


def test_another_width(tmp_path: Path) -> None:
    model(tmp_path / "m1", 4)
    model(tmp_path / "m2", 16, vocab_size=9)
    assert fault(tmp_path).splitlines() == [
        "m2: hidden_size 16 against 4; widths cannot be merged",
        "  model.embed_tokens.weight is [8, 4] in m1 but [9, 16] in m2",
    ]


def test_other_widths_of_one_part(tmp_path: Path) -> None:
    model(tmp_path / "m1")
    model(tmp_path / "m2", intermediate_size=10)
    text = fault(tmp_path)
    assert text.startswith("m2: intermediate_size 10 against 6; widths cannot be merged\n")
    assert ".mlp.up_proj.weight is [6, 4] in m1 but [10, 4] in m2" in text or "gate_proj" in text


def test_other_numbers_of_heads(tmp_path: Path) -> None:
    model(tmp_path / "m1", keys=2, heads=1)
    model(tmp_path / "m2", keys=4, heads=2)
    assert fault(tmp_path).splitlines() == [
        "m2: num_key_value_heads 2 against 1; numbers of heads cannot be merged",
        "  model.layers.0.self_attn.k_proj.weight is [2, 4] in m1 but [4, 4] in m2",
    ]


def test_heads_that_do_not_explain_the_shapes(tmp_path: Path) -> None:
    model(tmp_path / "m1", keys=2, heads=2)
    model(tmp_path / "m2", keys=3, heads=4)
    assert "num_key_value_heads" not in fault(tmp_path)


def test_another_width_without_a_config(tmp_path: Path) -> None:
    model(tmp_path / "m1", 4, config=False)
    model(tmp_path / "m2", 8, config=False)
    assert fault(tmp_path).startswith("m2: columns of embeddings 8 against 4; widths cannot")


def test_another_width_cannot_be_stacked(tmp_path: Path) -> None:
    model(tmp_path / "m1", 4)
    model(tmp_path / "m2", 8)
    text = (
        "merge_method: passthrough\nslices:\n"
        "- sources: [{model: m1, layer_range: [0, 1]}]\n"
        "- sources: [{model: m2, layer_range: [1, 2]}]\n"
    )
    assert fault(tmp_path, text=text).startswith("m2: hidden_size 8 against 4")


def test_a_part_of_another_width_may_be_left_out(tmp_path: Path) -> None:
    model(tmp_path / "m1")
    model(tmp_path / "m2", intermediate_size=10)
    assert plan(tmp_path, MatchOptions(exclude=("mlp",))).steps


def test_widths_of_parts_that_the_model_does_not_have(tmp_path: Path) -> None:
    """A width of 0 is equal in both, and no tensor shows it."""
    for name in ("m1", "m2"):
        config = {"hidden_size": 4, "num_hidden_layers": 2, "projection_dim": 0}
        folder = model(tmp_path / name)
        (folder / "config.json").write_text(json.dumps(config))
    assert len(plan(tmp_path).steps) > 0


def test_a_config_that_no_tensor_confirms(tmp_path: Path) -> None:
    model(tmp_path / "m1")
    folder = model(tmp_path / "m2")
    text = (folder / "config.json").read_text().replace('"hidden_size": 4', '"hidden_size": 5')
    (folder / "config.json").write_text(text)
    assert plan(tmp_path).steps


@pytest.mark.parametrize("config", [True, False])
def test_another_depth(tmp_path: Path, config: bool) -> None:
    model(tmp_path / "m1", layers=2, config=config)
    model(tmp_path / "m2", layers=3, config=config)
    assert fault(tmp_path).splitlines()[0].startswith("m2 has 3 layers")
    assert "m1 has 2: see slices" in fault(tmp_path)
    turned = direct_recipe(("m2", "m1"))
    assert "m1 has 2 layers" in fault(tmp_path, text=turned)


def test_another_depth_is_a_choice_of_the_user(tmp_path: Path) -> None:
    model(tmp_path / "m1", layers=2)
    model(tmp_path / "m2", layers=3)
    assert plan(tmp_path, MatchOptions(surplus="drop")).steps
    turned = direct_recipe(("m2", "m1"))
    assert plan(tmp_path, MatchOptions(missing="copy"), turned).steps
    assert "m2 has 3 layers" in fault(tmp_path, MatchOptions(missing="copy"))


def test_depths_of_two_sections(tmp_path: Path) -> None:
    config = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 1}}
    tensors = {f"model.layers.{n}.w": torch.ones(2) for n in range(2)}
    first = {**tensors, "visual.blocks.0.w": torch.ones(2)}
    write_checkpoint(tmp_path / "m1", first, config=config)
    second = {**first, "visual.blocks.1.w": torch.ones(2), "visual.blocks.2.w": torch.ones(2)}
    config = {**config, "vision_config": {"depth": 3}}
    write_checkpoint(tmp_path / "m2", second, config=config)
    assert fault(tmp_path) == "m2 has 3 layers (vision_config.depth), m1 has 1: see slices"


def test_layers_that_a_copy_lost(tmp_path: Path) -> None:
    model(tmp_path / "m1", layers=3)
    folder = model(tmp_path / "m2", layers=2)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('_layers": 2', '_layers": 3'))
    text = fault(tmp_path)
    assert "m2: whole layers are missing (model.layers.2); is it complete?" in text


def test_shapes_are_those_of_tensors_in_the_files(tmp_path: Path) -> None:
    """Not of the fused ones that other layouts have."""
    model(tmp_path / "m1")
    model(tmp_path / "m2", keys=1)
    assert fault(tmp_path).splitlines() == [
        "4 tensors differ in shape:",
        "  model.layers.0.self_attn.k_proj.weight is [2, 4] in m1 but [1, 4] in m2",
        "  model.layers.0.self_attn.v_proj.weight is [2, 4] in m1 but [1, 4] in m2",
        "  model.layers.1.self_attn.k_proj.weight is [2, 4] in m1 but [1, 4] in m2",
        "  and 1 more",
        "  these models do not share an architecture",
    ]
