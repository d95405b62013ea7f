"""Names in memory follow the conversions of transformers, class by class."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from merge_worker.conversion.in_memory import InMemory, Part, in_memory, rope_order
from support.paths import ROOT

TABLE = ROOT / "worker" / "merge_worker" / "conversion" / "names_in_memory.json"
MIXTRAL = "model.layers.0.input_layernorm.weight"
LANGUAGE = "model.language_model.layers.0.x.weight"


def named(model: str, names: Sequence[str]) -> InMemory:
    return in_memory(names, {"architectures": [model]})


@pytest.mark.parametrize(
    ("model", "in_file", "name"),
    [
        ("UltrabertForMaskedLM", "ultrabert.layers.0.mlp.x.weight", "model.layers.0.mlp.x.weight"),
        ("TimesFm2_5Model", "layers.0.mlp.ff0.weight", "layers.0.mlp.fc1.weight"),
        (
            "SegformerForImageClassification",
            "segformer.encoder.block.1.0.mlp.dense1.weight",
            "segformer.stages.1.blocks.0.mlp.fc1.weight",
        ),
        # With and without what its pattern may leave out.
        ("Qwen2VLForConditionalGeneration", "model.layers.0.x.weight", LANGUAGE),
        ("Qwen2VLForConditionalGeneration", "model.language_model.layers.0.x.weight", LANGUAGE),
        # As of the class, of the model without its head, and of a file that begins without.
        ("SwinModel", "encoder.layers.0.x.output.dense.bias", "encoder.layers.0.x.mlp.fc2.bias"),
        ("GroundingDinoModel", "encoder.embeddings.norm.bias", "encoder.embeddings.norm.bias"),
        ("MixtralForCausalLM", "layers.0.input_layernorm.weight", MIXTRAL),
        ("MixtralForCausalLM", "lm_head.weight", "lm_head.weight"),
        ("SwinModel", "swin.encoder.layers.0.x.bias", "encoder.layers.0.x.bias"),
        ("GPT2LMHeadModel", "h.0.attn.c_attn.weight", None),
    ],
)
def test_names(model: str, in_file: str, name: str | None) -> None:
    wanted = {} if name is None else {name: ((in_file,),)}
    assert named(model, [in_file]).holders == wanted


def test_a_module_has_conversions_of_its_own() -> None:
    """The steps of a tower hold for its names, whether or not the file begins with `model`."""
    tower = "backbone.conv_encoder.model.encoder.layers.0.attention.self.key.weight"
    wanted = "backbone.conv_encoder.model.swin.encoder.layers.0.attention.k_proj.weight"
    other = "encoder.layers.0.attention.self.key.weight"
    for begin in ("", "model."):
        found = named("GroundingDinoForObjectDetection", [begin + tower, begin + other])
        assert found.holders == {
            f"model.{wanted}": ((begin + tower,),),
            f"model.{other}": ((begin + other,),),
        }


def test_a_tensor_of_several_parameters() -> None:
    fused = "vision_model.encoder.layers.0.attn.qkv.weight"
    found = named("QianfanOCRForConditionalGeneration", [fused])
    place = "model.vision_tower.layers.0.attention"
    assert found.parts == {
        f"{place}.{letter}_proj.weight": Part(fused, n, 3, None) for n, letter in enumerate("qkv")
    }
    assert not found.holders


def test_tensors_of_one_parameter() -> None:
    kernels = [f"model.layers.0.linear_attn.{x}_conv1d.weight" for x in "vqk"]
    found = named("OlmoHybridForCausalLM", kernels)
    _, q, k = kernels
    assert found.holders == {"model.layers.0.linear_attn.conv1d.weight": ((q, k, kernels[0]),)}


def test_experts_stored_one_by_one() -> None:
    place = "model.layers.0.block_sparse_moe.experts"
    names = [f"{place}.{n}.w{m}.weight" for n in (10, 2, 0) for m in (3, 2, 1)]
    experts = "model.layers.0.mlp.experts"
    assert named("MixtralForCausalLM", names).holders == {
        f"{experts}.gate_up_proj": tuple(
            (f"{place}.{n}.w1.weight", f"{place}.{n}.w3.weight") for n in (0, 2, 10)
        ),
        f"{experts}.down_proj": tuple((f"{place}.{n}.w2.weight",) for n in (0, 2, 10)),
    }


def test_renamings_that_hold_together_or_not_at_all() -> None:
    place = "vision_tower.encoder.blocks.0"
    new = "model.vision_tower.layers.0"
    released = [f"{place}.mlp.fc{n}.weight" for n in (0, 1)]
    for names in (released, [f"{place}.mlp.fc{n}.weight" for n in (1, 2)]):
        assert named("Kimi_K25ForConditionalGeneration", names).holders == {
            f"{new}.mlp.fc{n}.weight": ((name,),) for n, name in enumerate(names, start=1)
        }


def test_elements_in_another_order_and_weights_of_others() -> None:
    kimi = named("Kimi_K25ForConditionalGeneration", ["vision_tower.encoder.blocks.0.wqkv.weight"])
    assert kimi.is_changed("model.vision_tower.layers.0.attn.k_proj")
    assert not kimi.holders
    luke = named("LukeForMaskedLM", [])
    assert luke.is_shared("entity_predictions.decoder")
    assert not luke.is_shared("luke.encoder.layer.0.output.dense")


def test_heads_whose_halves_files_interleave() -> None:
    # Rows of two heads of four; each pair in the file is a column of two halves in memory.
    assert rope_order(8, 2) == [0, 2, 1, 3, 4, 6, 5, 7]
    config = {
        "architectures": ["Kimi_K25ForConditionalGeneration"],
        "vision_config": {"num_attention_heads": 2},
    }
    holder, place = "vision_tower.encoder.blocks.0.wqkv.weight", "model.vision_tower.layers.0.attn"
    assert in_memory([holder], config).parts == {
        f"{place}.q_proj.weight": Part(holder, 0, 3, None, rope_heads=2),
        f"{place}.k_proj.weight": Part(holder, 1, 3, None, rope_heads=2),
        f"{place}.v_proj.weight": Part(holder, 2, 3, None),
    }


def test_models_of_no_known_class() -> None:
    for config in ({}, {"architectures": None}, {"architectures": []}, {"architectures": [3]}):
        assert in_memory(["a.weight"], config) == InMemory()


@pytest.mark.slow
def test_the_table_is_that_of_transformers() -> None:
    """A sample of it; `scripts/names_in_memory.py` renews it."""
    models = ("MixtralForCausalLM", "Tipsv2Model", "Step3p7Model", "T5Model")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'worker'}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "names_in_memory.py", *models],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=True,
    )
    found, table = json.loads(done.stdout), json.loads(TABLE.read_text(encoding="utf-8"))
    for model in models:
        assert _conversions(found, model) == _conversions(table, model)
        assert found["ties"].get(model) == table["ties"].get(model)


def _conversions(table: dict[str, dict[str, list[object]]], model: str) -> list[object]:
    begin, roots, *modules = table["classes"].get(model, [None, None])
    return [begin, roots, *([scope, table["lists"][name]] for scope, name in modules)]


def test_patterns_of_the_table() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    for listed in table["lists"].values():
        for patterns, names, *way in listed:
            if way[1:]:  # which of the names have interleaved halves
                assert way[0] == "split" and len(way[2]) == len(names)
                way = way[:1]
            assert way in ([], ["rename"], ["join"], ["stack"], ["split"], ["heads"], ["other"])
            for pattern in patterns if way else [patterns]:
                assert re.compile(pattern).groups or r"\1" not in names
    named_lists = {name for _, _, *modules in table["classes"].values() for _, name in modules}
    assert named_lists == set(table["lists"])
