"""Tensors found by the names of other layouts."""

from collections.abc import Iterable

import pytest

from merge_worker.conversion.in_memory import Part
from merge_worker.conversion.locate import Locator
from merge_worker.dtypes import BY_NAME
from merge_worker.tensors.source import StoredTensor


def locator(names: Iterable[str]) -> Locator:
    tensors = {name: StoredTensor(name, BY_NAME["F32"], (2, 2), "", 0, 16) for name in names}
    return Locator(tensors, {})


def test_a_tensor_of_the_same_name_comes_first() -> None:
    found = locator(["a.mlp.gate.weight", "a.block_sparse_moe.gate.weight"])
    holders = list(found.holders("a.mlp.gate.weight"))
    assert holders[:2] == [(("a.mlp.gate.weight",),), (("a.block_sparse_moe.gate.weight",),)]


def test_experts_in_memory_are_held_by_the_parts_of_every_expert() -> None:
    moe = "model.layers.3.block_sparse_moe.experts"
    names = [f"{moe}.{expert}.{w}.weight" for expert in range(12) for w in ("w1", "w2", "w3")]
    found = locator(names)
    assert list(found.holders("model.layers.3.mlp.experts.gate_up_proj")) == [
        tuple((f"{moe}.{e}.w1.weight", f"{moe}.{e}.w3.weight") for e in range(12))
    ]
    assert list(found.holders("model.layers.3.mlp.experts.11.up_proj.weight")) == [
        ((f"{moe}.11.w3.weight",),)
    ]
    assert not list(found.holders("model.layers.4.mlp.experts.gate_up_proj"))


def test_parts_of_stacks_and_of_fused_projections() -> None:
    found = locator(["a.mlp.experts.gate_up_proj", "a.self_attn.qkv_proj.weight"])
    assert list(found.parts("a.mlp.experts.5.up_proj.weight")) == [
        Part("a.mlp.experts.gate_up_proj", 1, 2, 5)
    ]
    assert list(found.parts("a.self_attn.v_proj.weight")) == [
        Part("a.self_attn.qkv_proj.weight", 2, 3, None)
    ]
    assert not list(found.holders("a.self_attn.v_proj.weight"))


def test_tensors_in_turns_are_not_parts() -> None:
    names = ["a.mlp.experts.gate_up_proj", "a.mlp.experts.gate_up_proj_bias"]
    assert not [
        part
        for part in locator(names).parts("a.mlp.experts.5.up_proj.bias")
        if part.holder == names[1]
    ]


def test_names_that_begin_alike_are_renamed_alike() -> None:
    present = {"language_model.model.layers.0.q", "language_model.model.layers.1.q", "visual.w"}
    found = locator(present)
    names = ["model.layers.0.q", "model.layers.1.q", "model.visual.w", "other.w"]
    fits = dict.fromkeys(names, present.__contains__)
    assert found.agreed(fits) == {
        "model.layers.0.q": "language_model.model.layers.0.q",
        "model.layers.1.q": "language_model.model.layers.1.q",
        "model.visual.w": "visual.w",
        "other.w": "other.w",
    }
    fits["model.layers.2.q"] = present.__contains__
    assert found.agreed(fits)["model.layers.0.q"] == "model.layers.0.q"


def test_two_beginnings_are_refused() -> None:
    present = {"model.text_model.w", "model.language_model.w"}
    with pytest.raises(ValueError, match=r"'model.w…' could mean"):
        locator(present).agreed({"model.w": present.__contains__})
