"""The plan as text and as JSON, from headers alone."""

import json
import re
from pathlib import Path

import pytest
import torch

from merge_worker.commands.check import as_json, describe, report_plan
from merge_worker.errors import OutputError
from merge_worker.output import space
from merge_worker.output.space import SPARE_BYTES, Limit, Quota
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from merge_worker.units import size
from support.checkpoint_factory import read_tensors, save_fine_tunes, write_checkpoint
from support.recipes import plan_of, some_models


def test_facts(models: list[Path]) -> None:
    plan = plan_of(models, threads=2)
    facts = json.loads(json.dumps(as_json(plan)))
    assert facts["method"] == "linear"
    assert facts["models"] == [str(model) for model in models]
    assert facts["tensors"] == {"merged": 6, "copied": 2, "missing": 0, "surplus": 0}
    assert facts["parameters"] == 64 * 48 + 2 * 48 * 33 + 48 + 1
    assert facts["layers"] == {"layers.": 2}
    assert facts["bytes_out"] == plan.layout.shards[0].size
    assert facts["bytes_in"] == 3 * (2 * facts["parameters"] + 9 * 8 + 3)
    assert facts["shards"] == ["model.safetensors"]
    assert facts["dtypes"] == ["bfloat16", "bool", "int64"]
    assert facts["memory"]["bound_bytes"] == plan.memory.bound
    assert facts["key"] == plan.key
    assert facts["storage"] is None and facts["stages"] == []


def test_parameters_by_component(tmp_path: Path) -> None:
    folder = save_fine_tunes(tmp_path, "olmo_hybrid", count=1)[0]
    plan = plan_of([folder])
    groups = as_json(plan)["parameters_by_component"]
    parts = ["embeddings", "attention", "linear attention/SSM", "MLP", "norms"]
    assert list(groups) == parts
    assert sum(groups.values()) == as_json(plan)["parameters"]
    stored = read_tensors(folder)
    assert groups["MLP"] == sum(t.numel() for name, t in stored.items() if ".mlp." in name)
    lines = describe(plan).splitlines()
    shares = [line for line in lines if line.endswith(tuple(f"%  {part}" for part in parts))]
    assert len(shares) == 5
    assert sum(float(line.split()[1]) for line in shares) == pytest.approx(100, abs=0.3)


def test_stages_are_plans_themselves(models: list[Path]) -> None:
    text = (
        f"name: mean\nmerge_method: linear\nmodels: ['{models[0]}', '{models[1]}']\n"
        f"parameters: {{weight: 1}}\n---\nmerge_method: slerp\nbase_model: mean\n"
        f"models: ['{models[2]}']\nparameters: {{t: 0.5}}\n"
    )
    plan = make_plan(parse(text), PlanOptions())
    facts = json.loads(json.dumps(as_json(plan)))
    (stage,) = facts["stages"]
    assert (stage["name"], stage["method"]) == ("mean", "linear")
    assert stage["models"] == [str(model) for model in models[:2]]
    assert stage["bytes_out"] == plan.lazy[0].output_bytes
    first = describe(plan).splitlines()[0]
    assert first.startswith(f"stage      mean: linear of {models[0]}, {models[1]}; ")


def test_as_text(models: list[Path]) -> None:
    text = describe(plan_of(models))
    assert "6 merged, 2 copied, 0 missing, 0 surplus" in text
    assert f"first      {models[0]}" in text and f"model      {models[1]}" in text
    assert "layers.* 2" in text
    assert "in 1 file, bfloat16, bool, int64" in text


def test_warnings_and_escapes(tmp_path: Path) -> None:
    name = "\x1b[2J.0.weight"
    for folder, dtype in (("a", torch.float32), ("b", torch.bfloat16)):
        write_checkpoint(tmp_path / folder, {name: torch.ones(3).to(dtype)})
    text = describe(plan_of([tmp_path / "a", tmp_path / "b"]))
    assert "warning: 1 tensor is stored with different dtypes" in text
    assert "\x1b" not in text and "\\x1b[2J.* 1" in text


def test_the_key_covers_all_that_the_bytes_depend_on(tmp_path: Path) -> None:
    models = some_models(tmp_path)
    key = plan_of(models).key
    assert plan_of(models, threads=7, memory_bytes=1 << 22).key == key
    others = [
        plan_of(models[:2]),
        plan_of(models[::-1]),
        plan_of(models, dtype="float32"),
        plan_of(models, seed=1),
        plan_of(models, shard_bytes=5000),
        plan_of(models, block=1 << 10),
    ]
    keys = [other.key for other in others]
    assert len({key, *keys}) == len(keys) + 1


def test_sizes_as_text() -> None:
    words = [size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 30, 1 << 41)]
    assert words == ["0 bytes", "1023 bytes", "1.00 KiB", "5.00 MiB", "3.00 GiB", "2.00 TiB"]


def test_names_without_layers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"x": torch.ones(1)})
    assert "none found in the names" in describe(plan_of([tmp_path / "m"]))


def test_shards_are_listed(models: list[Path]) -> None:
    facts = as_json(plan_of(models, shard_bytes=5000))
    assert facts["shards"] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]


def test_files_are_listed(models: list[Path]) -> None:
    write_checkpoint(models[0] / "part", {"linear.weight": torch.ones(2)})
    for name in ("tokenizer.json", "spk_dict.pt", "optimizer.pt", "scheduler.pt", "model.gguf"):
        (models[0] / name).write_text("x")
    (models[0] / "onnx").mkdir()
    (models[0] / "onnx" / "model.onnx").write_text("x")
    plan = plan_of(models)
    assert as_json(plan)["files"] == {
        "merged": ["model.safetensors"],
        "copied": ["config.json", "part/model.safetensors", "spk_dict.pt", "tokenizer.json"],
        "left_out": {
            "model.gguf": "another format of the weights",
            "onnx/": "export of the model",
            "optimizer.pt": "state of the training",
            "scheduler.pt": "state of the training",
        },
    }
    text = describe(plan)
    assert "files      1 merged, 4 copied, 4 left out\n" in text
    copied = "config.json, part/model.safetensors, spk_dict.pt, tokenizer.json"
    assert f"           copied: {copied}\n" in text
    assert "           left out (state of the training): optimizer.pt, scheduler.pt\n" in text
    assert "weights that are copied, not merged: part/model.safetensors" in text


def test_the_disk(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(models)
    needs = plan.output_bytes + SPARE_BYTES
    assert as_json(plan)["disk"] == {"needs_bytes": needs, "free_bytes": None, "quotas": []}
    (models[0] / "5gram.bin").write_bytes(bytes(1000))
    more = as_json(plan_of(models))["disk"]["needs_bytes"]
    (models[0] / "5gram.bin").unlink()
    assert more == needs + 1000, "data is copied"
    assert f"disk       needs {size(needs)} with a margin\n" in describe(plan) + "\n"
    quota = Quota("user anna", Limit(5 << 20, hard=100 << 20))
    monkeypatch.setattr(space, "quotas_of", lambda folder: (quota, Quota("group b", Limit(soft=9))))
    report = report_plan(plan, tmp_path / "out", False)
    line = re.search(r"^disk .* with a margin, [\d.]+ [KMGT]iB free, (.*)$", report.text, re.M)
    assert line is not None and line[1] == "95.00 MiB left of the quota of user anna"
    assert report.error is None
    assert re.search("^warning: .* soft limit of group b", report.text, re.MULTILINE)
    facts = json.loads(report_plan(plan, tmp_path / "out", True).text)
    assert facts["disk"]["free_bytes"] > 0
    limit = {"used": 5 << 20, "soft": None, "hard": 100 << 20, "left": 95 << 20}
    assert facts["disk"]["quotas"][0]["bytes"] == limit
    assert "soft limit" in facts["warnings"][-1]


def test_a_refusal_comes_with_the_plan(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of(models), tmp_path / "out"
    monkeypatch.setattr(space, "SPARE_BYTES", 1 << 60)
    for json_wanted in (False, True):
        report = report_plan(plan, out, json_wanted)
        assert "linear" in report.text and isinstance(report.error, OutputError)
    out.mkdir()
    (out / "merge_manifest.json").write_text("{}")
    assert report_plan(plan, out, False).error is None, "already merged"
