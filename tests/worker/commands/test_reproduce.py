"""merge-worker merge OUT/merge_manifest.json OUT2: the same merge once more, byte for byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import write_checkpoint
from support.recipes import average, digest, manifest, run
from support.tokenizer_factory import make_models

Capture = pytest.CaptureFixture[str]
QUIET = ("--progress", "off")


def again(out: Path, name: str = "again", *words: object) -> int:
    return run("merge", out / "merge_manifest.json", out.with_name(name), *QUIET, *words)


def test_byte_for_byte(tmp_path: Path, models: list[Path]) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: dare_ties\nbase_model: {models[0]}\n"
        "parameters: {density: 0.5, weight: 1}\n"
        f"models:\n- model: {models[1]}\n- model: {models[2]}\n  parameters: {{weight: 0.5}}\n"
    )
    options = ("--seed", 7, "--shard-size", "8KB", "--dtype", "float32", "--missing", "copy")
    assert run("merge", recipe, tmp_path / "out", *QUIET, *options) == 0
    assert again(tmp_path / "out") == 0
    assert digest(tmp_path / "again") == digest(tmp_path / "out")
    cards = [(tmp_path / name / "README.md").read_text().splitlines() for name in ("out", "again")]
    # The name of the folder is in its title, and in the Python that loads it.
    assert cards[0].count("# out") == 1
    assert [
        line.replace("# out", "# again").replace('"out"', '"again"') for line in cards[0]
    ] == cards[1]
    first, second = manifest(tmp_path / "out"), manifest(tmp_path / "again")
    assert second["key"] == first["key"] and second["options"] == first["options"]
    assert [o for o in second["outputs"] if o["file"] != "README.md"] == [
        o for o in first["outputs"] if o["file"] != "README.md"
    ]
    assert run("verify", tmp_path / "again") == 0
    # Without the seed and the shards of the manifest it is another one.
    assert run("merge", recipe, tmp_path / "other", *QUIET) == 0
    assert digest(tmp_path / "other") != digest(tmp_path / "out")


def test_an_average_and_a_union(tmp_path: Path, models: list[Path]) -> None:
    assert average(tmp_path / "out", models, "--weights", "2,1,1") == 0
    assert again(tmp_path / "out") == 0
    assert digest(tmp_path / "again") == digest(tmp_path / "out")
    make_models(tmp_path / "with tokens")
    (tmp_path / "r.yml").write_text(
        "merge_method: linear\nparameters: {weight: 1}\ntokenizer: {pad_to_multiple_of: 7}\n"
        "models: [{model: a}, {model: b}]\nchat_template: chatml\n"
    )
    place = ("--relative-to", tmp_path / "with tokens")
    assert run("merge", tmp_path / "r.yml", tmp_path / "united", *QUIET, *place) == 0
    assert again(tmp_path / "united", "once more", *place) == 0
    assert digest(tmp_path / "once more") == digest(tmp_path / "united")


def test_the_manifest_alone_is_enough(tmp_path: Path, models: list[Path], capsys: Capture) -> None:
    """Published, it has names for its models; --relative-to tells where they are by now."""
    assert average(tmp_path / "out", models) == 0
    elsewhere = tmp_path / "elsewhere" / "out"
    elsewhere.mkdir(parents=True)
    shutil.copy(tmp_path / "out" / "merge_manifest.json", elsewhere)
    moved = tmp_path / "moved"
    moved.mkdir()
    for model in models:
        model.rename(moved / model.name)
    assert again(elsewhere) == 3
    text = capsys.readouterr().err
    assert "m0: no such folder" in text and "--relative-to DIR says where the models are" in text
    assert again(elsewhere, "again", "--relative-to", moved) == 0
    first, second = digest(tmp_path / "out"), digest(elsewhere.with_name("again"))
    assert first.pop("mergekit_config.yml") != second.pop("mergekit_config.yml")
    assert first == second
    # Beside the result they are found as they are.
    for model in moved.iterdir():
        shutil.copytree(model, elsewhere.parent / model.name)
    assert again(elsewhere, "beside") == 0


def test_models_of_the_same_name(tmp_path: Path) -> None:
    models = []
    for seed, parent in enumerate("xy"):
        place = tmp_path / parent / "model"
        models.append(write_checkpoint(place, {"w": torch.full((3,), float(seed))}))
    assert average(tmp_path / "out", models) == 0
    text = manifest(tmp_path / "out")["recipe"]["text"]
    assert "./x/model" in text and "./y/model" in text and str(tmp_path) not in text
    (tmp_path / "out" / "mergekit_config.yml").unlink()
    assert again(tmp_path / "out") == 0


def test_changed_models_and_options(tmp_path: Path, models: list[Path], capsys: Capture) -> None:
    assert average(tmp_path / "out", models) == 0
    assert again(tmp_path / "out", "again", "--dtype", "float16") == 2
    assert "'dtype' is None in the manifest; drop the option" in capsys.readouterr().err
    assert again(tmp_path / "out", "again", "--threads", 1, "--memory", "64MiB") == 0
    shutil.rmtree(models[1])
    write_checkpoint(models[1], {"x": torch.ones(3)})
    assert again(tmp_path / "out", "changed") == 3
    capsys.readouterr()
    shutil.copytree(models[2], models[1], dirs_exist_ok=True)
    value = manifest(tmp_path / "out")
    value["inputs"][1]["shards"][0]["header_sha256"] = "0"
    (tmp_path / "out" / "merge_manifest.json").write_text(json.dumps(value))
    assert again(tmp_path / "out", "changed") == 3
    assert "its headers differ" in capsys.readouterr().err


def test_other_values_under_the_same_headers(
    tmp_path: Path, models: list[Path], capsys: Capture
) -> None:
    assert average(tmp_path / "out", models) == 0
    files = {path: path.read_bytes() for path in models[1].iterdir()}
    for path, raw in files.items():
        if path.suffix == ".safetensors":
            middle = (8 + int.from_bytes(raw[:8], "little") + len(raw)) // 2
            path.write_bytes(raw[:middle] + bytes(byte ^ 1 for byte in raw[middle:]))
    assert again(tmp_path / "out", "changed") == 5
    error = capsys.readouterr().err
    assert "model.safetensors would differ from the manifest" in error
    assert not (tmp_path / "changed" / "merge_manifest.json").exists()
    assert not list((tmp_path / "changed").glob("*.safetensors"))
    for path, raw in files.items():
        path.write_bytes(raw)
    assert again(tmp_path / "out", "same") == 0
    assert digest(tmp_path / "same") == digest(tmp_path / "out")


def test_json_that_is_a_recipe(tmp_path: Path, models: list[Path]) -> None:
    recipe = tmp_path / "r.json"
    recipe.write_text(
        json.dumps(
            {
                "merge_method": "linear",
                "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models],
            }
        )
    )
    assert run("merge", recipe, tmp_path / "out", *QUIET) == 0
    recipe.write_text("{")
    assert run("merge", recipe, tmp_path / "other", *QUIET) == 2
