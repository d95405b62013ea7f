"""Weights of modules beside the model's own: merged where all models have them, else copied."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.checkpoint_factory import write_checkpoint
from support.recipes import average, manifest, plan_of, run

SIZES = {"encoder.layers.0.weight": (8, 8), "encoder.layers.1.weight": (8, 8), "norm.weight": (8,)}
TOWER = {"vision.layers.0.weight": (8, 8), "vision.layers.1.weight": (8, 8)}
DENSE = {"linear.weight": (4, 8), "linear.bias": (4,)}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def embedder(folder: Path, seed: int, pickled: bool = False) -> Path:
    """Write an embedding model with a module that has weights of its own."""
    write_checkpoint(folder, random_tensors(SIZES, seed), config={"model_type": "bert"})
    dense, config = random_tensors(DENSE, 100 + seed), {"in_features": 8, "out_features": 4}
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "2_Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    write_checkpoint(folder / "2_Dense", dense, config=config)
    if pickled:
        (folder / "2_Dense" / "model.safetensors").unlink()
        torch.save(dense, folder / "2_Dense" / "pytorch_model.bin")
    return folder


def mean_of(shapes: dict[str, tuple[int, ...]], *seeds: int) -> dict[str, Tensor]:
    parts = [random_tensors(shapes, seed) for seed in seeds]
    return {n: torch.stack([part[n].double() for part in parts]).mean(0).float() for n in shapes}


def assert_equal(file: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("pickled", [[False, False], [True, True], [False, True]])
def test_modules_are_merged(tmp_path: Path, pickled: list[bool]) -> None:
    models = [embedder(tmp_path / f"m{n}", n, given) for n, given in enumerate(pickled)]
    out = tmp_path / "out"
    assert average(out, models) == 0
    assert_equal(out / "model.safetensors", mean_of(SIZES, 0, 1))
    assert_equal(out / "2_Dense" / "model.safetensors", mean_of(DENSE, 100, 101))
    assert sorted(path.name for path in (out / "2_Dense").iterdir()) == [
        *("config.json", "model.safetensors")
    ]
    text = manifest(out)
    assert text["counts"]["merged"] == 5 and text["files"]["merged"] == 2
    dense = "pytorch_model.bin" if pickled[0] else "model.safetensors"
    files = [shard["file"] for shard in text["inputs"][0]["shards"]]
    assert files == ["model.safetensors", f"2_Dense/{dense}"]
    assert run("verify", out) == 0
    assert "library_name: sentence-transformers" in (out / "README.md").read_text()
    # A merge of merges: what is written can be read.
    assert average(tmp_path / "again", [out, models[0]]) == 0


def test_small_shards_split_the_model_alone(tmp_path: Path) -> None:
    models = [embedder(tmp_path / f"m{n}", n) for n in range(2)]
    out = tmp_path / "out"
    assert average(out, models, "--shard-size", "270") == 0
    assert_equal(out / "2_Dense" / "model.safetensors", mean_of(DENSE, 100, 101))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"]} == {*SIZES}
    assert len({*index["weight_map"].values()}) == 3
    assert run("verify", out) == 0


def test_sharded_modules_have_an_index_of_their_own(tmp_path: Path) -> None:
    models = [embedder(tmp_path / f"m{n}", n) for n in range(2)]
    for number, model in enumerate(models):
        tower = random_tensors(TOWER, 50 + number)
        write_checkpoint(model / "tower", tower, config={"model_type": "vit"}, shards=2)
    out = tmp_path / "out"
    assert average(out, models, "--shard-size", "270") == 0
    index = json.loads((out / "tower" / "model.safetensors.index.json").read_text())
    assert {*index["weight_map"]} == {*TOWER}
    found: dict[str, Tensor] = {}
    for file in {*index["weight_map"].values()}:
        found |= load_file(out / "tower" / file)
    assert all(torch.equal(found[n], tensor) for n, tensor in mean_of(TOWER, 50, 51).items())


def test_what_one_model_has_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (embedder(tmp_path / name, n) for n, name in enumerate("ab"))
    write_checkpoint(first / "head", {"score": torch.ones(3)})
    write_checkpoint(first / "lora", {"x.lora_A.weight": torch.ones(3)})
    (first / "lora" / "model.safetensors").rename(first / "lora" / "adapter_model.safetensors")
    write_checkpoint(second / "other", {"score": torch.ones(3)})
    (second / "voices.npz").write_text("x")
    out = tmp_path / "out"
    assert average(out, [first, second]) == 0
    errors = capsys.readouterr().err
    copied = "lora/adapter_model.safetensors, head/model.safetensors"
    assert f"{first}: weights that are copied, not merged: {copied}" in errors
    lost = "other/model.safetensors, voices.npz"
    assert f"{second}: files missing from {first} are left out: {lost}" in errors
    for name in ("head/model.safetensors", "lora/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (first / name).read_bytes()
    assert not (out / "other").exists()
    assert run("verify", out) == 0


def test_modules_of_different_shapes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [embedder(tmp_path / f"m{n}", n) for n in range(2)]
    wider = {"linear.weight": torch.ones(5, 8), "linear.bias": torch.ones(4)}
    save_file(wider, models[1] / "2_Dense" / "model.safetensors")
    assert average(tmp_path / "out", models) == 3
    assert "2_Dense/linear.weight is [4, 8]" in capsys.readouterr().err
    assert average(tmp_path / "out", models, "--exclude", "2_Dense") == 0, "taken from the base"
    assert_equal(tmp_path / "out" / "2_Dense" / "model.safetensors", random_tensors(DENSE, 100))


def test_slices_leave_modules_alone(tmp_path: Path) -> None:
    models = [embedder(tmp_path / f"m{n}", n) for n in range(2)]
    for model in models:
        write_checkpoint(model / "tower", random_tensors(TOWER, 7), config={"model_type": "vit"})
        (model / "config.json").write_text('{"num_hidden_layers": 2}')
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: '{models[0]}', layer_range: [0, 2]}}]\n"
        f"- sources: [{{model: '{models[1]}', layer_range: [1, 2]}}]\n"
    )
    assert run("merge", recipe, tmp_path / "out", "--progress", "off") == 0
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == 4
    assert_equal(tmp_path / "out" / "tower" / "model.safetensors", random_tensors(TOWER, 7))


@pytest.mark.parametrize("method", ["linear", "arcee_fusion"])
def test_modules_pass_through_stages(tmp_path: Path, method: str) -> None:
    """Lazily merged results have modules, and those that are written first."""
    models = [embedder(tmp_path / f"m{n}", n) for n in range(3)]
    (models[0] / "2_Dense" / "spk.npy").write_text("data")
    base = f"base_model: '{models[0]}'\n" if method == "arcee_fusion" else ""
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        f"name: first\nmerge_method: {method}\n{base}models: ['{models[0]}', '{models[1]}']\n"
        + ("parameters: {weight: 1}\n" if method == "linear" else "")
        + f"---\nmerge_method: linear\nmodels: [first, '{models[2]}']\nparameters: {{weight: 1}}\n"
    )
    out = tmp_path / "out"
    assert run("merge", recipe, out, "--progress", "off") == 0
    assert (out / "2_Dense" / "spk.npy").read_text() == "data"
    found = load_file(out / "2_Dense" / "model.safetensors")
    assert found.keys() == DENSE.keys()
    if method == "linear":
        first = mean_of(DENSE, 100, 101)
        third = random_tensors(DENSE, 102)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, (first[name] + third[name]) / 2)


def test_the_key_depends_on_merged_modules(tmp_path: Path) -> None:
    models = [embedder(tmp_path / f"m{n}", n) for n in range(2)]
    both = plan_of(models).key
    for model in models:
        (model / "2_Dense").rename(model / ".hidden")
    assert plan_of(models).key != both


@pytest.mark.parametrize(
    ("stem", "config", "library"),
    [
        ("diffusion_pytorch_model", {"_class_name": "UNet2DConditionModel"}, "diffusers"),
        ("consolidated", {"dim": 8}, "transformers"),
        ("own", {"model_type": "own"}, "transformers"),
    ],
)
def test_the_stem_of_the_weights_stays(
    tmp_path: Path, stem: str, config: dict[str, object], library: str
) -> None:
    models = [
        write_checkpoint(tmp_path / f"m{n}", random_tensors(SIZES, n), config=config)
        for n in (0, 1)
    ]
    for model in models:
        (model / "model.safetensors").rename(model / f"{stem}.safetensors")
    out = tmp_path / "out"
    assert average(out, models) == 0
    assert_equal(out / f"{stem}.safetensors", mean_of(SIZES, 0, 1))
    assert not (out / "model.safetensors").exists()
    assert f"library_name: {library}" in (out / "README.md").read_text()
    assert run("verify", out) == 0
    small = tmp_path / "small"
    assert average(small, models, "--shard-size", "270") == 0
    split = stem != "own"
    assert (small / f"{stem}.safetensors.index.json").is_file() is split
    assert (small / f"{stem}-00001-of-00003.safetensors").is_file() is split


def test_variants_are_merged_beside_the_plain_weights(tmp_path: Path) -> None:
    """They load wherever those of the inputs do."""
    stem, models = "diffusion_pytorch_model", []
    for seed in (0, 1):
        tensors = random_tensors(SIZES, seed)
        model = write_checkpoint(tmp_path / f"m{seed}", tensors, config={"_class_name": "UNet"})
        (model / "model.safetensors").rename(model / f"{stem}.safetensors")
        half = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(half, model / f"{stem}.fp16.safetensors")
        models.append(model)
    assert average(tmp_path / "out", models) == 0
    assert_equal(tmp_path / "out" / f"{stem}.safetensors", mean_of(SIZES, 0, 1))
    half = load_file(tmp_path / "out" / f"{stem}.fp16.safetensors")
    for name, tensor in mean_of(SIZES, 0, 1).items():
        assert half[name].dtype == torch.float16
        torch.testing.assert_close(half[name].float(), tensor, atol=2e-3, rtol=1e-3)
