"""`report`: a finished merge beside its inputs, which it finds by recipe and manifest."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.checkpoint_factory import read_tensors, save_fine_tunes
from support.recipes import average, run


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A task-arithmetic merge of two fine-tunes of a hybrid, with relative paths."""
    save_fine_tunes(tmp_path, "olmo_hybrid")
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: olmo_hybrid-0\n"
        "models: [olmo_hybrid-1, olmo_hybrid-2]\nparameters: {weight: 0.5}\n"
    )
    words = ["merge", recipe, tmp_path / "out", "--relative-to", tmp_path, "--progress", "off"]
    assert run(*words) == 0
    return tmp_path / "out"


def reported(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("report", *words, "--json", "--progress", "off") == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def flat(folder: Path) -> torch.Tensor:
    tensors = read_tensors(folder)
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def test_distances(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = reported(capsys, merged)
    assert facts["base"] == "olmo_hybrid-0"
    assert facts["models"] == ["olmo_hybrid-1", "olmo_hybrid-2", "out (merged)"]
    base, one, two = (flat(merged.parent / f"olmo_hybrid-{i}") for i in range(3))
    out = flat(merged)
    result = facts["total"]["models"][2]
    assert result["task_vector_norm"] == pytest.approx(float((out - base).norm()))
    pairs = {tuple(pair["models"]): pair for pair in facts["total"]["pairs"]}
    for name, own in (("olmo_hybrid-1", one), ("olmo_hybrid-2", two)):
        pair = pairs[name, "out (merged)"]
        cosine = torch.cosine_similarity(own - base, out - base, 0)
        assert pair["cosine"] == pytest.approx(float(cosine))
        assert pair["distance"] == pytest.approx(float((own - out).norm()))
        assert pair["equal"] == pytest.approx(float((own == out).double().mean()))
    assert facts["advice"]["warnings"] == [] and facts["advice"]["recipe"] is None


def test_tables_and_pictures(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.html", "x.png"):
        file = merged.parent / name
        assert run("report", merged, "--plot", file, "--progress", "off") == 0
        text = capsys.readouterr().out
        assert "model      out (merged)" in text and "linear attention/SSM" in text
        assert "from olmo_hybrid-2, cosine of the task vectors" in text
        assert "farthest from olmo_hybrid-0 in " in text and f"picture    {file}" in text
    assert "Where does the merge lie?" in (merged.parent / "x.html").read_text("utf-8")


def test_inputs_that_moved(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = merged.parent
    names = [f"olmo_hybrid-{i}" for i in range(3)]
    (folder / names[1]).rename(folder / "elsewhere")
    capsys.readouterr()
    assert run("report", merged) == 3
    error = capsys.readouterr().err
    assert f"{names[1]}: not found ({names[1]})" in error
    assert f"--models {' '.join(names)}" in error
    assert run("report", merged, "--models", folder / "elsewhere") == 2
    assert f"1 --models for 3 inputs; give them as: --models {' '.join(names)}" in (
        capsys.readouterr().err
    )
    places = [folder / names[0], folder / "elsewhere", folder / names[2]]
    facts = reported(capsys, merged, "--models", *places)
    assert facts["models"][0] == names[1] and facts["advice"]["warnings"] == []


def test_inputs_that_changed(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = merged.parent
    shutil.rmtree(folder / "olmo_hybrid-2")
    other = save_fine_tunes(folder / "new", "olmo_hybrid", count=1, intermediate_size=80)[0]
    shutil.copytree(other, folder / "olmo_hybrid-2")
    capsys.readouterr()
    assert run("report", merged) == 3
    assert "changed since it was merged as olmo_hybrid-2" in capsys.readouterr().err
    places = [folder / f"olmo_hybrid-{i}" for i in range(3)]
    facts = reported(capsys, merged, "--models", *places)
    assert "is not the olmo_hybrid-2 that was merged" in facts["advice"]["warnings"][0]
    assert "intermediate_size 80 against 64" in facts["left_out"][0]


def test_a_result_that_is_one_of_its_inputs(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert average(tmp_path / "out", models, "--weights", "1,0,0") == 0
    warnings = reported(capsys, tmp_path / "out")["advice"]["warnings"]
    assert warnings == ["the result is IDENTICAL to m0: the other models changed nothing"]


def test_a_folder_that_is_not_a_merge(
    models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", models[0]) == 3
    assert "no merge_manifest.json; not a finished merge" in capsys.readouterr().err
    for text, fact in (
        ('{"inputs": [3]}', "damaged: inputs[0] is not as merges write it"),
        ('{"inputs": null}', "damaged: inputs is not as merges write it"),
        ('{"inputs": []}', "damaged; the list of inputs is missing"),
    ):
        (models[0] / "merge_manifest.json").write_text(text)
        assert run("report", models[0]) == 3
        assert fact in capsys.readouterr().err


def test_the_search_varies_the_recipe_of_the_merge(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = yaml.safe_load(reported(capsys, merged)["advice"]["search"])
    recipe = yaml.safe_load((merged.parent / "recipe.yml").read_text())
    recipe["models"] = [{"model": name} for name in recipe["models"]]
    assert search["recipe"] == recipe
    assert search["space"] == {
        "models.0.parameters.weight": [0, 1.5],
        "models.1.parameters.weight": [0, 1.5],
    }
    file = merged.parent / "search.yml"
    assert run("report", merged, "--search", file, "--progress", "off") == 0
    assert yaml.safe_load(file.read_text()) == search


def test_a_method_without_values_gets_a_search_of_its_models(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = merged.parent / "stock.yml"
    recipe.write_text(
        "merge_method: model_stock\nbase_model: olmo_hybrid-0\n"
        "models: [olmo_hybrid-1, olmo_hybrid-2]\n"
    )
    out = merged.parent / "stock"
    words = ["merge", recipe, out, "--relative-to", merged.parent, "--progress", "off"]
    assert run(*words) == 0
    search = yaml.safe_load(reported(capsys, out)["advice"]["search"])
    models = [{"model": f"olmo_hybrid-{n}", "parameters": {"weight": 1.0}} for n in (1, 2)]
    assert search["recipe"] == {
        "merge_method": "task_arithmetic",
        "base_model": "olmo_hybrid-0",
        "models": models,
    }


def test_a_copy_has_nothing_to_search(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = merged.parent / "copy.yml", merged.parent / "copy"
    recipe.write_text("merge_method: passthrough\nmodels: [olmo_hybrid-1]\n")
    words = ["merge", recipe, out, "--relative-to", merged.parent, "--progress", "off"]
    assert run(*words) == 0
    advice = reported(capsys, out)["advice"]
    assert advice["search"] is None
    assert advice["findings"][-1].startswith("no search is suggested: the recipe has no values")
