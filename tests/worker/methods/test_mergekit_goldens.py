"""Recipes of mergekit 0.1.5 give its results; `scripts/golden` made those.

What mergekit does wrong is not among them: see test_slices.py and the methods' own tests.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from support.checkpoint_factory import read_tensors
from support.golden_models import SIXTEEN_BITS, make_models, make_models_of_16_bits
from support.recipes import run

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_mergekit"
SEEDS_THERE, SEEDS_HERE = 24, 8
# Karcher's own loop stops at 1e-5.
TOLERANCE = {"karcher": 2e-4, "karcher_short": 2e-4}
# Names of the means in statistics.json: share of elements that moved, L1 and L2 norm of the delta.
SHARE, L1, L2 = range(3)


def recipes(file: str) -> list[Any]:
    return list(_recipes(file))


def _recipes(file: str) -> Iterator[Any]:
    for recipe in yaml.safe_load_all((GOLDENS / file).read_text(encoding="utf-8")):
        name = recipe.pop("golden")
        yield pytest.param(name, recipe, id=name)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden_models")
    make_models(folder)
    return folder


def merged(recipe: dict[str, Any], models: Path, out: Path, seed: int = 0) -> dict[str, Tensor]:
    path = out.with_suffix(".yml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    words = ["--relative-to", models, "--seed", seed, "--progress", "off", "--threads", 1]
    assert run("merge", path, out, *words) == 0
    return read_tensors(out)


def difference(ours: Tensor, golden: Tensor) -> float:
    """The largest difference in relation to the largest value."""
    largest = float(golden.double().abs().max())
    return float((ours.double() - golden.double()).abs().max()) / max(largest, 1e-30)


@pytest.mark.parametrize(("name", "recipe"), recipes("recipes.yml"))
def test_same_result(name: str, recipe: dict[str, Any], models: Path, tmp_path: Path) -> None:
    golden = load_file(GOLDENS / f"{name}.safetensors")
    ours = merged(recipe, models, tmp_path / "out")
    assert ours.keys() == golden.keys()
    for key, tensor in golden.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        assert difference(ours[key], tensor) <= TOLERANCE.get(name, 2e-5), key


@pytest.mark.parametrize(
    ("name", "recipe"), [case for case in recipes("recipes.yml") if case.id in SIXTEEN_BITS]
)
def test_results_of_16_bits_are_nearer_to_the_exact_ones(
    name: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Than mergekit's; the exact ones are ours of the same numbers in float64."""
    make_models_of_16_bits(tmp_path / "narrow")
    make_models_of_16_bits(tmp_path / "wide", torch.float64)
    golden = load_file(GOLDENS / f"bfloat16-{name}.safetensors")
    ours = merged(recipe, tmp_path / "narrow", tmp_path / "out")
    exact = merged(recipe, tmp_path / "wide", tmp_path / "exact")
    assert ours.keys() == golden.keys() == exact.keys()
    for key, want in exact.items():
        assert ours[key].dtype == golden[key].dtype == torch.bfloat16
        mine, theirs = ((x.double() - want).abs() for x in (ours[key], golden[key]))
        assert float(mine.norm()) <= float(theirs.norm()) * (1 + 1e-9), key
        # No farther than half a step of the largest from what is nearest, whoever is nearer there.
        assert float(mine.max()) <= max(float(theirs.max()), float(want.abs().max()) * 2.0**-9), key


@pytest.mark.parametrize(("name", "recipe"), recipes("random.yml"))
def test_same_distribution(name: str, recipe: dict[str, Any], models: Path, tmp_path: Path) -> None:
    golden = json.loads((GOLDENS / "statistics.json").read_text(encoding="utf-8"))[name]
    base = read_tensors(models / recipe["base_model"])
    total: dict[str, list[float]] = {key: [0.0] * 3 for key in golden}
    for seed in range(SEEDS_HERE):
        ours = merged(recipe, models, tmp_path / str(seed), seed)
        for key, tensor in ours.items():
            delta = tensor.double() - base[key].double()
            measured = [
                float((delta != 0).double().mean()),
                float(delta.abs().sum()),
                float(delta.norm()),
            ]
            total[key] = [a + b / SEEDS_HERE for a, b in zip(total[key], measured, strict=True)]
    for key, means in golden.items():
        # Both are means over runs; their noise falls with the root of seeds × elements.
        runs = 1 / (1 / SEEDS_HERE + 1 / SEEDS_THERE)
        noise = 2 / (runs * base[key].numel()) ** 0.5
        assert abs(total[key][SHARE] - means[SHARE]) <= noise, key
        assert total[key][L1] == pytest.approx(means[L1], rel=3 * noise), key
        assert total[key][L2] == pytest.approx(means[L2], rel=3 * noise), key
    # All matrices together have less noise than each.
    for which in (SHARE, L1, L2):
        matrices = [key for key in golden if base[key].dim() > 1]
        sizes = {key: base[key].numel() if which == SHARE else 1 for key in matrices}
        ours_sum = sum(total[key][which] * sizes[key] for key in matrices)
        golden_sum = sum(golden[key][which] * sizes[key] for key in matrices)
        assert ours_sum == pytest.approx(golden_sum, rel=0.02)
