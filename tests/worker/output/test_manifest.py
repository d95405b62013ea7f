"""merge_manifest.json: the recipe, inputs, options and result."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from merge_worker import __version__
from merge_worker.errors import InputError
from merge_worker.output.manifest import read_manifest, worker_facts
from support.checkpoint_factory import write_checkpoint
from support.recipes import average, manifest, run


def test_all_documented_fields(tmp_path: Path, models: list[Path]) -> None:
    words = ("--weights", "2,1,1", "--seed", "7", "--dtype", "float32")
    assert average(tmp_path / "out", models, *words) == 0
    value = manifest(tmp_path / "out")
    assert value["format"] == 1
    assert value["worker"]["version"] == __version__
    assert value["recipe"]["method"] == "linear"
    assert value["recipe"]["models"] == ["m0", "m1", "m2"]
    (values,) = value["recipe"]["values"]
    assert values["parameters"]["weight"] == [2.0, 1.0, 1.0]
    assert (value["seed"], value["dtype"]) == (7, "float32")
    counts = {"merged": 6, "copied": 2, "missing": 0, "surplus": 0}
    assert value["counts"] == counts
    assert value["files"] == {"merged": 1, "copied": 1, "left_out": {}}
    assert value["nonfinite"] == 0
    assert set(value["timings"]) == {"plan_s", "stream_s", "total_s"}
    assert all(seconds >= 0 for seconds in value["timings"].values())
    assert value["gib_per_s"] >= 0
    for entry, model in zip(value["inputs"], models, strict=True):
        raw = (model / "model.safetensors").read_bytes()
        assert entry["model"] == model.name and entry["bytes"] == len(raw)
        length = int.from_bytes(raw[:8], "little")
        digest = hashlib.sha256(raw[8 : 8 + length]).hexdigest()
        assert entry["shards"] == [
            {"file": "model.safetensors", "bytes": len(raw), "header_sha256": digest}
        ]


def test_values_that_vary_by_tensor(tmp_path: Path, models: list[Path]) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: linear\nmodels:\n"
        f"- model: {models[0]}\n"
        "  parameters: {weight: [{filter: norm, value: 3}, {value: 1}]}\n"
        f"- model: {models[1]}\n  parameters: {{weight: 1}}\n"
    )
    assert run("merge", recipe, tmp_path / "out", "--progress", "off") == 0
    values = manifest(tmp_path / "out")["recipe"]["values"]
    assert sorted((v["parameters"]["weight"], v["tensors"]) for v in values) == [
        ([1.0, 1.0], 5),
        ([3.0, 1.0], 1),
    ]


def test_missing_and_surplus_names_are_counted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", {"x": torch.ones(3), "only.a": torch.ones(2)})
    write_checkpoint(tmp_path / "b", {"x": torch.ones(3), "only.b": torch.ones(2)})
    models = [tmp_path / "a", tmp_path / "b"]
    assert average(tmp_path / "out", models) == 3
    words = ("--missing", "copy", "--surplus", "drop")
    assert average(tmp_path / "out", models, *words) == 0
    value = manifest(tmp_path / "out")
    assert value["counts"] == {"merged": 1, "copied": 1, "missing": 1, "surplus": 1}
    assert any("only.a" in note for note in value["notes"])
    assert any("only.b" in note for note in value["notes"])


def test_differing_integers_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, start in (("a", 0), ("b", 1)):
        tensors = {"x": torch.ones(3), "ids": torch.arange(start, start + 4)}
        write_checkpoint(tmp_path / name, tensors)
    assert average(tmp_path / "out", [tmp_path / "a", tmp_path / "b"]) == 0
    assert manifest(tmp_path / "out")["differing_copies"] == ["ids"]
    assert "1 copied tensor differs between the models" in capsys.readouterr().err


def test_damaged_manifests(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "merge_manifest.json").write_text("{}")
    assert read_manifest(tmp_path) == {}, "an earlier release may have written less"
    (tmp_path / "merge_manifest.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], ""),
        ({"outputs": 3}, "outputs"),
        ({"outputs": [{"bytes": 3}]}, "outputs[0]"),
        ({"outputs": [{"file": "a", "bytes": True}]}, "outputs[0].bytes"),
        ({"outputs": [{"file": "a", "bytes": 1, "sum128": 3}]}, "outputs[0].sum128"),
        ({"inputs": [{"model": "m"}, {"model": ["m"]}]}, "inputs[1].model"),
        ({"inputs": [{"model": "m", "shards": [{}]}]}, "inputs[0].shards[0]"),
        ({"inputs": [{"model": "m", "adapter": "x"}]}, "inputs[0].adapter"),
        ({"recipe": "linear"}, "recipe"),
        ({"options": {"dtype": "int3"}}, "options.dtype"),
        ({"options": {"block": 0}}, "options.block"),
        ({"options": {"rules": {"missing": "ignore"}}}, "options.rules.missing"),
        ({"nonfinite": -1}, "nonfinite"),
        ({"notes": [1]}, "notes[0]"),
    ],
)
def test_a_value_of_another_form(tmp_path: Path, value: object, place: str) -> None:
    (tmp_path / "merge_manifest.json").write_text(json.dumps(value))
    with pytest.raises(InputError) as raised:
        read_manifest(tmp_path)
    assert f"damaged{place and ': '}{place}" in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        *("../precious", "..", "/etc/passwd", ".", "", "a/../../precious", "a\0b", "\ud800"),
        *(".merge-partial", ".merge-partial/key.json"),
    ],
)
def test_a_name_that_is_none_of_a_result(tmp_path: Path, name: str) -> None:
    value = {"outputs": [{"file": name, "bytes": 0}]}
    (tmp_path / "merge_manifest.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"damaged: outputs\[0\]\.file"):
        read_manifest(tmp_path)


def test_no_digest_of_a_checkout() -> None:
    assert worker_facts() == {"version": __version__, "sha256": None, "sources": None}
