"""Sets of weight files by their stems, and the names that results have."""

import pytest

from merge_worker.checkpoint.weight_sets import WeightSet, find_sets, main_weights, owner


@pytest.mark.parametrize(
    ("names", "stem", "files"),
    [
        (["model.safetensors", "voice.safetensors"], "model", ["model.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "model",
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"],
            "diffusion_pytorch_model",
            ["diffusion_pytorch_model.safetensors"],
        ),
        (["model.fp16.safetensors"], "model.fp16", ["model.fp16.safetensors"]),
        (["consolidated.safetensors"], "consolidated", ["consolidated.safetensors"]),
        (["consolidated.safetensors", "own.safetensors"], "own", ["own.safetensors"]),
        (["b.safetensors", "a.safetensors"], "model", ["a.safetensors", "b.safetensors"]),
        (["adapter_model.safetensors", "pytorch_model.bin"], "model", ["pytorch_model.bin"]),
        (["diffusion_pytorch_model.bin"], "diffusion_pytorch_model", None),
    ],
)
def test_the_weights_of_the_model_itself(
    names: list[str], stem: str, files: list[str] | None
) -> None:
    main = main_weights(names)
    assert main is not None
    assert (main.stem, list(main.files), main.prefix) == (stem, files or names, "")


def test_no_weights() -> None:
    assert main_weights(["adapter_model.safetensors", "x.pt", "voice.npy"]) is None


def test_shards_of_a_variant_are_one_set() -> None:
    new = [f"model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    old = [f"model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    for names in (new, old):
        sets = find_sets("part", [*names, "model.safetensors.index.fp16.json"])
        (weights,) = sets.values()
        assert list(weights.files) == [f"part/{name}" for name in names]
        assert weights.stem == "model.fp16" and weights.is_variant
        assert weights.index == "part/model.safetensors.index.fp16.json" == weights.index_name


@pytest.mark.parametrize(
    ("weights", "first", "index"),
    [
        (WeightSet(), "model-00001-of-00003.safetensors", "model.safetensors.index.json"),
        (
            WeightSet("unet", "diffusion_pytorch_model.fp16", "unet/"),
            "unet/diffusion_pytorch_model.fp16-00001-of-00003.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        (WeightSet("", "v1.5"), "v1.5-00001-of-00003.safetensors", "v1.5.safetensors.index.json"),
    ],
)
def test_names_in_the_result(weights: WeightSet, first: str, index: str) -> None:
    assert weights.file_name(0, 3) == first
    assert weights.file_name(0, 1) == first.replace("-00001-of-00003", "")
    assert weights.index_name == index


def test_only_what_a_loader_reads_in_parts_is_split() -> None:
    assert WeightSet().is_split and WeightSet(stem="consolidated").is_split
    assert not WeightSet(stem="own", files=("own.safetensors",)).is_split
    assert not WeightSet(
        "2_Dense", prefix="2_Dense/", files=("2_Dense/model.safetensors",)
    ).is_split
    parts = tuple(f"unet/model-0000{n}-of-00002.safetensors" for n in (1, 2))
    assert WeightSet("unet", prefix="unet/", files=parts).is_split


def test_the_longest_prefix_owns_a_tensor() -> None:
    main, outer, inner = WeightSet(), WeightSet(prefix="a/"), WeightSet(prefix="a/b/")
    sets = (main, outer, inner)
    assert [owner(n, sets) for n in ("x.w", "a/x", "a/b/x", "b/x")] == [main, outer, inner, main]
