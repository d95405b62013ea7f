"""Merges from Python have the key and the bytes of those of the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import merge_worker as mw
from support.recipes import digest, manifest, run, some_models


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return some_models(tmp_path, config={"model_type": "none", "num_hidden_layers": 2})


def entries(models: list[Path], **parameters: Any) -> list[dict[str, Any]]:
    return [{"model": str(model), "parameters": parameters} for model in models]


def recipes(models: list[Path]) -> dict[str, Any]:
    """Return recipes of different kinds, by name: dicts, and texts of several documents."""
    base, *tuned = models
    of_base = {"base_model": str(base)}
    return {
        "linear": {"merge_method": "linear", "models": entries(models, weight=1.5)},
        "slerp": {
            "merge_method": "slerp",
            **of_base,
            "models": entries(models[:2]),
            "parameters": {"t": [0.1, 0.9]},
        },
        "ties": {
            "merge_method": "ties",
            **of_base,
            "models": entries(tuned, weight=1, density=0.4),
        },
        "random": {
            "merge_method": "dare_ties",
            **of_base,
            "models": entries(tuned, weight=0.5, density=0.5),
        },
        "filters": {
            "merge_method": "task_arithmetic",
            **of_base,
            "models": entries(tuned, weight=[{"filter": "layers", "value": 0.3}, {"value": 1}]),
            "dtype": "float32",
        },
        "geometry": {"merge_method": "model_stock", **of_base, "models": entries(tuned)},
        "rows": {
            "merge_method": "della",
            **of_base,
            "models": entries(tuned, weight=1, density=0.5, epsilon=0.1),
        },
        "slices": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": str(base), "layer_range": [0, 1]}]},
                {"sources": [{"model": str(tuned[0]), "layer_range": [0, 2]}]},
            ],
        },
        "patterns": {
            "merge_method": "linear",
            "models": entries(models, weight=1),
            "exclude": ["embed"],
        },
        "stages": "\n---\n".join(
            yaml.safe_dump(document)
            for document in (
                {"merge_method": "slerp", "name": "both", **of_base, "models": entries(models[:2])}
                | {"parameters": {"t": 0.5}},
                {"merge_method": "linear", "models": entries(["both", tuned[1]], weight=1)},  # type: ignore[list-item]
            )
        ),
    }


KINDS = (
    "linear", "slerp", "ties", "random", "filters", "geometry", "rows", "slices", "patterns",
    "stages",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ten_kinds_of_recipes(kind: str, models: list[Path], tmp_path: Path) -> None:
    recipe = recipes(models)[kind]
    file = tmp_path / "recipe.yml"
    file.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False))
    assert run("merge", file, tmp_path / "command", "--progress", "off", "--seed", "3") == 0
    planned = mw.plan(recipe, seed=3)
    result = mw.merge(planned, tmp_path / "python")
    assert result.finished and planned.key == manifest(tmp_path / "command")["key"]
    assert planned.key == result.manifest["key"] == mw.plan(file, seed=3).key
    ours, theirs = digest(tmp_path / "python"), digest(tmp_path / "command")
    assert ours.pop("mergekit_config.yml") and theirs.pop("mergekit_config.yml")
    assert ours == theirs


def test_options_of_the_command_line(models: list[Path], tmp_path: Path) -> None:
    words = ["--weights", "2,1,1", "--dtype", "float32", "--shard-size", "8KB", "--exclude", "norm"]
    assert run("average", tmp_path / "command", *models, *words, "--progress", "off") == 0
    planned = mw.average(
        models, weights=[2, 1, 1], dtype="float32", shard_size=8000, exclude=["norm"]
    )
    mw.merge(planned, tmp_path / "python")
    assert planned.key == manifest(tmp_path / "command")["key"]
    assert digest(tmp_path / "python") == digest(tmp_path / "command")


def test_a_schedule(models: list[Path], tmp_path: Path) -> None:
    assert (
        run("average", tmp_path / "a", *models, "--schedule", "ema:0.5", "--progress", "off") == 0
    )
    assert mw.average(models, schedule="ema:0.5").key == manifest(tmp_path / "a")["key"]


def test_a_manifest_is_a_recipe(models: list[Path], tmp_path: Path) -> None:
    mw.merge(mw.average(models, seed=7), tmp_path / "first")
    again = mw.merge(tmp_path / "first" / "merge_manifest.json", tmp_path / "again")
    assert digest(tmp_path / "first") == digest(tmp_path / "again")
    assert again.manifest["seed"] == 7
