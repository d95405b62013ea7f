"""Several merges in one pass: each is what it would be alone, and what is shared is read once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.checkpoint import reader
from merge_worker.cli import main
from merge_worker.engine import one_pass, sampling
from merge_worker.engine.work import _union
from merge_worker.planning.step import Piece
from support.checkpoint_factory import write_checkpoint
from support.recipes import one_tensor_models, shards_of
from support.tokenizer_factory import make_models

RECIPES = {
    "even": "merge_method: linear\nmodels: [{model: big0}, {model: big1}, {model: big2}]\n"
    "parameters: {weight: 1}\n",
    "uneven": "merge_method: linear\nmodels:\n- {model: big2, parameters: {weight: 3}}\n"
    "- {model: big0, parameters: {weight: 1}}\ndtype: float32\n",
    "ties": "merge_method: ties\nbase_model: big0\nmodels: [{model: big1}, {model: big2}]\n"
    "parameters: {weight: 1, density: 0.3}\n",
    "dare": "merge_method: dare_ties\nbase_model: big1\nmodels: [{model: big0}, {model: big2}]\n"
    "parameters: {weight: 0.5, density: 0.6}\n",
    "stock": "merge_method: model_stock\nbase_model: big0\n"
    "models: [{model: big1}, {model: big2}]\n",
    "one": "merge_method: passthrough\nmodels: [{model: big1}]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose large tensor is in many pieces, a recipe for each kind of pass."""
    models = tmp_path_factory.mktemp("together")
    one_tensor_models(models, 1_400_000, 3)
    for name, text in RECIPES.items():
        (models / f"{name}.yml").write_text(text)
    return models


def run(folder: Path, *words: str) -> int:
    options = ["--relative-to", str(folder), "--progress", "off", "--memory", "9MiB"]
    return main(["merge", *words, *options])


def together(folder: Path, place: Path) -> list[str]:
    return [w for name in RECIPES for w in ("-a", str(folder / f"{name}.yml"), str(place / name))]


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("alone")
    for name in RECIPES:
        assert run(folder, str(folder / f"{name}.yml"), str(place / name)) == 0
    return place


def test_each_is_what_it_would_be_alone(folder: Path, alone: Path, tmp_path: Path) -> None:
    assert run(folder, *together(folder, tmp_path)) == 0
    for name in RECIPES:
        assert shards_of(tmp_path / name) == shards_of(alone / name), name
        keys = [
            json.loads((place / name / "merge_manifest.json").read_text())["key"]
            for place in (tmp_path, alone)
        ]
        assert keys[0] == keys[1]
        assert main(["verify", str(tmp_path / name)]) == 0


def test_what_is_there_is_not_done_again(
    folder: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, str(folder / "ties.yml"), str(tmp_path / "ties")) == 0
    capsys.readouterr()
    assert run(folder, *together(folder, tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("already there; nothing to do") for line in lines] == [
        name == "ties" for name in RECIPES
    ]
    for name in RECIPES:
        assert shards_of(tmp_path / name) == shards_of(alone / name), name


def test_the_inputs_are_read_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reader.Files.read
    seen: list[tuple[str, int]] = []

    def noted(self: reader.Files, path: str, offset: int, *rest: Any) -> None:
        seen.append((path, offset))
        read(self, path, offset, *rest)

    monkeypatch.setattr(reader.Files, "read", noted)
    # Samples are read once more.
    monkeypatch.setattr(sampling.InputSample, "sampled", lambda self: iter(()))
    words = []
    for number in range(3):
        text = RECIPES["even"].replace("weight: 1", f"weight: {number + 1}, normalize: false")
        (tmp_path / f"{number}.yml").write_text(text)
        words += ["-a", str(tmp_path / f"{number}.yml"), str(tmp_path / str(number))]
    assert run(folder, *words) == 0
    assert len(seen) == len(set(seen)) > 0


def sweep(folder: Path, place: Path) -> list[tuple[Path, Path]]:
    """Recipes that only add up: each with weights of its own, the first not always 1."""
    pairs = []
    for number, weights in enumerate(((1, 2, 3), (3, 1, 1), (0.3, 0.21, 0.77), (0, 2, 0))):
        rows = "".join(
            f"- {{model: big{n}, parameters: {{weight: {w}}}}}\n" for n, w in enumerate(weights)
        )
        recipe = place / f"sweep{number}.yml"
        recipe.write_text(f"merge_method: linear\nmodels:\n{rows}")
        pairs.append((recipe, place / f"sweep{number}"))
    return pairs


@pytest.mark.parametrize("taken", [slice(0, 2), slice(0, 4)], ids=["whole numbers", "any"])
def test_sums_of_the_same_models(folder: Path, tmp_path: Path, taken: slice) -> None:
    """Sources that all convert alike are converted once; no bit is another for it."""
    pairs = sweep(folder, tmp_path)[taken]
    words = [str(word) for pair in pairs for word in ("-a", *pair)]
    assert run(folder, *words) == 0
    for recipe, out in pairs:
        alone = tmp_path / "alone" / out.name
        assert run(folder, str(recipe), str(alone)) == 0
        assert shards_of(out) == shards_of(alone)


@pytest.mark.parametrize(("share", "forgotten"), [(3, False), (1, True)])
def test_inputs_count_once_against_the_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int, forgotten: bool
) -> None:
    """Inputs that fit into the page cache stay in it, however many recipes read them."""
    size = sum(path.stat().st_size for path in folder.glob("big*/*.safetensors"))
    monkeypatch.setattr(one_pass, "_memory_bytes", lambda: share * size)
    dropped: list[str] = []
    monkeypatch.setattr(reader.Files, "done_with", lambda self, path, *place: dropped.append(path))
    assert run(folder, *(str(w) for p in sweep(folder, tmp_path) for w in ("-a", *p))) == 0
    assert bool(dropped) is forgotten


def test_an_unfinished_one_goes_on_with_the_others(
    folder: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge_worker.output.store import PartialOutput

    write, left = PartialOutput.write, 7

    def some(self: PartialOutput, *words: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        write(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(PartialOutput, "write", some)
    assert run(folder, *together(folder, tmp_path)) != 0
    monkeypatch.undo()
    assert not any((tmp_path / name / "merge_manifest.json").exists() for name in RECIPES)
    assert run(folder, *together(folder, tmp_path)) == 0
    for name in RECIPES:
        assert shards_of(tmp_path / name) == shards_of(alone / name), name


def test_mistakes_are_told_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    even = str(folder / "even.yml")
    assert run(folder, "-a", even, str(tmp_path / "a"), "-a", even, f"{tmp_path}/b/../a") == 2
    assert "two recipes write here" in capsys.readouterr().err
    assert run(folder) == 2
    assert "give RECIPE.yml and OUT" in capsys.readouterr().err
    for name in ("x", "y"):
        (tmp_path / f"{name}.yml").write_text(f"merge_method: {name}\nmodels: [{{model: big0}}]\n")
    pairs = ["-a", f"{tmp_path}/x.yml", f"{tmp_path}/1", "-a", f"{tmp_path}/y.yml", f"{tmp_path}/2"]
    assert run(folder, *pairs) == 2
    errors = capsys.readouterr().err
    assert "x.yml" in errors and "y.yml" in errors


def test_runs_of_blocks_are_united() -> None:
    runs = [Piece(4, 2), Piece(0, 2), Piece(1, 2), Piece(6, 1), Piece(9, 1)]
    assert _union(runs) == [Piece(0, 3), Piece(4, 3), Piece(9, 1)]
    assert _union([]) == []


def test_a_copy_of_another_model_is_another_copy(tmp_path: Path) -> None:
    words = []
    for number, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, {"steps": torch.tensor([number]), "w": torch.ones(3)})
    for name in "ab":
        text = f"merge_method: passthrough\nmodels: [{{model: {tmp_path / name}}}]\n"
        (tmp_path / f"{name}.yml").write_text(text)
        words += ["-a", str(tmp_path / f"{name}.yml"), str(tmp_path / f"out-{name}")]
    assert run(tmp_path, *words) == 0
    for name in "ab":
        assert shards_of(tmp_path / f"out-{name}") != {}
    assert shards_of(tmp_path / "out-a") != shards_of(tmp_path / "out-b")


def test_recipes_that_change_the_tokenizer(tmp_path: Path) -> None:
    make_models(tmp_path)
    pairs = []
    for name, weight in (("light", 1), ("heavy", 3)):
        (tmp_path / f"{name}.yml").write_text(
            "merge_method: linear\ntokenizer_source: union\nmodels:\n"
            f"- {{model: a, parameters: {{weight: 1}}}}\n"
            f"- {{model: b, parameters: {{weight: {weight}}}}}\n"
        )
        assert run(tmp_path, str(tmp_path / f"{name}.yml"), str(tmp_path / f"{name}-alone")) == 0
        pairs += ["-a", str(tmp_path / f"{name}.yml"), str(tmp_path / name)]
    assert run(tmp_path, *pairs) == 0
    for name in ("light", "heavy"):
        assert shards_of(tmp_path / name) == shards_of(tmp_path / f"{name}-alone")
