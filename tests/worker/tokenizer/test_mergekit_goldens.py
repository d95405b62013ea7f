"""Vocabularies as mergekit 0.1.5 makes them, compared row by row, by token; `scripts/golden`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from tokenizers import Tokenizer

from support.checkpoint_factory import read_tensors
from support.recipes import run
from support.tokenizer_factory import by_token, make_models

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_mergekit"
RECIPES = [
    pytest.param(recipe.pop("golden"), recipe, id=name)
    for recipe in yaml.safe_load_all((GOLDENS / "tokenizers.yml").read_text("utf-8"))
    if (name := recipe["golden"])
]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with_tokens")
    make_models(folder)
    return folder


@pytest.mark.parametrize(("name", "recipe"), RECIPES)
def test_same_rows(name: str, recipe: dict[str, Any], models: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "r.yml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    words = ("--relative-to", models, "--progress", "off", "--threads", 1)
    assert run("merge", path, out, *words) == 0
    ours = read_tensors(out)
    with safe_open(GOLDENS / f"{name}.safetensors", "pt") as golden:
        recorded = json.loads(golden.metadata()["tokens"])
        for key in golden.keys():  # noqa: SIM118 - it has no other way to list them
            theirs = golden.get_tensor(key)
            rows = by_token(out, ours[key])
            assert rows.keys() == recorded["ids"].keys()
            for token, number in recorded["ids"].items():
                difference = (rows[token] - theirs[number]).abs().max()
                assert difference <= 1e-6 * theirs.abs().max(), (key, token)
            spare = (ours[key][len(rows) :], theirs[len(rows) :])
            assert spare[0].shape == spare[1].shape and torch.allclose(*spare), key
        assert ("lm_head.weight" in ours) == ("lm_head.weight" in golden.keys())  # noqa: SIM118
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == recorded["rows"] == len(ours["model.embed_tokens.weight"])


def test_ids_do_not_move_from_run_to_run(models: Path, tmp_path: Path) -> None:
    recipe = next(r.values[1] for r in RECIPES if r.id == "tokenizer_union_delta")
    path = tmp_path / "r.yml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for out in ("one", "two"):
        words = ("--relative-to", models, "--progress", "off")
        assert run("merge", path, tmp_path / out, *words) == 0
    one, two = ((tmp_path / out / "tokenizer.json").read_bytes() for out in ("one", "two"))
    assert one == two
    ids = Tokenizer.from_file(str(tmp_path / "one" / "tokenizer.json")).get_vocab()
    # The base's stay; then regular tokens, then added ones, by model and by id there.
    new = ["ba", "gh", "<|im_start|>", "<|im_end|>", "<tool>", "<c>"]
    assert sorted(ids, key=lambda token: ids[token])[27:] == new
