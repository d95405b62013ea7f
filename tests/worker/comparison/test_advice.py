"""The advice of `compare`: each finding follows from its evidence, and every recipe runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from merge_worker.recipe import parse
from merge_worker.recipe.schema import Recipe
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import run

SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (64, 96),
    "model.layers.1.mlp.up_proj.weight": (80, 64),
}
GENERATOR = torch.Generator().manual_seed(3)


def noise(scale: float = 1.0) -> dict[str, Tensor]:
    return {n: scale * torch.randn(shape, generator=GENERATOR) for n, shape in SHAPES.items()}


def add(*parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in SHAPES}


def masked(tensors: Mapping[str, Tensor], first: float, last: float) -> dict[str, Tensor]:
    """Return tensors that are zero outside of a range of rows, given as fractions."""
    kept = {}
    for name, tensor in tensors.items():
        kept[name] = torch.zeros_like(tensor)
        rows = slice(int(first * len(tensor)), int(last * len(tensor)))
        kept[name][rows] = tensor[rows]
    return kept


BASE = noise()
COMMON = noise(0.05)
ONE = add(BASE, noise(0.05))


def fine_tunes() -> dict[str, tuple[dict[str, Tensor] | None, list[dict[str, Tensor]], str]]:
    """Return base, models, and the suggested method (empty: none)."""
    small = [add(BASE, noise(0.005)) for _ in range(3)]
    return {
        "conflicts": (BASE, [add(BASE, noise(0.05)) for _ in range(2)], "ties"),
        "small conflicts of three": (BASE, small, "dare_ties"),
        "parallel": (BASE, [add(BASE, COMMON, noise(0.01)) for _ in range(3)], "linear"),
        "half parallel": (
            BASE,
            [add(BASE, COMMON, noise(0.035)) for _ in range(2)],
            "task_arithmetic",
        ),
        "apart": (
            BASE,
            [add(BASE, masked(noise(0.05), i / 2, (i + 1) / 2)) for i in range(2)],
            "task_arithmetic",
        ),
        "two without a base": (None, [add(BASE, noise(0.05)) for _ in range(2)], "slerp"),
        "three without a base": (None, [add(BASE, noise(0.05)) for _ in range(3)], "linear"),
        "uneven": (BASE, [add(BASE, noise(0.02)), add(BASE, noise(0.1))], "ties"),
        "one twice": (BASE, [ONE, ONE, add(BASE, noise(0.05))], "ties"),
        "only one": (BASE, [ONE, ONE], ""),
        "the base itself": (BASE, [BASE, ONE], ""),
        "another base": (noise(), [ONE, add(BASE, noise(0.05))], ""),
        "unrelated": (None, [noise(), noise()], ""),
        "far": (BASE, [add(BASE, noise(0.6)), add(BASE, noise(0.6))], "ties"),
    }


CASES = fine_tunes()


def advice_of(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    base, models, _ = CASES[case]
    names = [chr(ord("a") + number) for number in range(len(models))]
    for name, tensors in zip(names, models, strict=True):
        write_checkpoint(folder / name, tensors)
    words: list[object] = [folder / name for name in names]
    if base is not None:
        words += ["--base", write_checkpoint(folder / "base", base)]
    assert run("compare", *words, "--json", "--progress", "off") == 0
    advice: dict[str, Any] = json.loads(capsys.readouterr().out)["advice"]
    return advice


@pytest.mark.parametrize("case", CASES)
def test_the_suggested_recipe_is_of_that_method_and_runs(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advice, expected = advice_of(case, tmp_path, capsys), CASES[case][2]
    if not expected:
        assert advice["recipe"] is None and advice["warnings"]
        assert advice["findings"][0].startswith("no recipe is suggested")
        return
    assert advice["recipe"].startswith("# a suggestion from the figures above, not measured")
    recipe = parse(advice["recipe"])
    assert recipe.method == expected and recipe.warnings == ()
    (tmp_path / "recipe.yml").write_text(advice["recipe"])
    out = tmp_path / "out"
    assert run("merge", tmp_path / "recipe.yml", out, "--progress", "off") == 0
    assert all(tensor.isfinite().all() for tensor in read_tensors(out).values())


WARNINGS = {
    "one twice": "a and b are IDENTICAL: merging them changes nothing",
    "only one": "a and b are IDENTICAL: merging them changes nothing",
    "the base itself": "a is IDENTICAL to the base base: its task vector is zero",
    "another base": "a does not come from base: its task vector is 1.4",
    "unrelated": "a and b are unrelated: 1.4",
    "far": "a is far from base: 60.",
}


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings_with_their_evidence(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert advice_of(case, tmp_path, capsys)["warnings"][0].startswith(WARNINGS[case])


@pytest.mark.parametrize("case", sorted(set(CASES) - set(WARNINGS)))
def test_no_warnings(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert advice_of(case, tmp_path, capsys)["warnings"] == []


def test_a_model_given_twice_is_merged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse(advice_of("one twice", tmp_path, capsys)["recipe"])
    assert [Path(ref.path).name for ref in recipe.model_refs()] == ["base", "a", "c"]


def weights(recipe: Recipe) -> list[Any]:
    sources = recipe.modules[0].slices[0].sources
    return [s.parameters["weight"].setting for s in sources if "weight" in s.parameters]


def test_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advice = advice_of("uneven", tmp_path, capsys)
    assert "the longest task vector is 4.9 times the shortest" in advice["findings"][2]
    assert weights(parse(advice["recipe"])) == pytest.approx([1.66, 0.34], abs=0.01)
    even = advice_of("parallel", tmp_path / "even", capsys)
    assert weights(parse(even["recipe"])) == [1, 1, 1]


def test_disjoint_changes_are_all_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advice = advice_of("apart", tmp_path, capsys)
    assert "they share only 0.00% of the elements that they changed" in advice["findings"][-1]
    (tmp_path / "r.yml").write_text(advice["recipe"])
    assert run("merge", tmp_path / "r.yml", tmp_path / "out", "--progress", "off") == 0
    for name, merged in read_tensors(tmp_path / "out").items():
        a, b = (read_tensors(tmp_path / m)[name] for m in "ab")
        torch.testing.assert_close(merged, a + b - BASE[name])


@pytest.mark.parametrize("name", ["with space", "a: b", "[x]", "null", "1.5", "#c", "ü'\""])
def test_any_folder_can_be_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / name, ONE)
    write_checkpoint(tmp_path / "plain", BASE)
    assert run("compare", name, "plain", "--json", "--progress", "off") == 0
    recipe = parse(json.loads(capsys.readouterr().out)["advice"]["recipe"])
    assert [ref.path for ref in recipe.model_refs()] == [name, "plain"]


def changed_in(share: float) -> dict[str, Tensor]:
    """Return changes in the first elements of each row, `share` of them, as from RL."""
    changes = noise(0.05)
    for tensor in changes.values():
        tensor[:, round(share * tensor.shape[1]) :] = 0
    return changes


def sparse_models(folder: Path, shares: dict[str, float], gap: bool = False) -> list[object]:
    """Write the base and models that changed a share of the elements; return the arguments."""
    words: list[object] = []
    for name, share in shares.items():
        tensors = add(BASE, changed_in(share))
        if gap:
            tensors["model.layers.1.mlp.up_proj.weight"] = BASE["model.layers.1.mlp.up_proj.weight"]
        words.append(write_checkpoint(folder / name, tensors))
    return [*words, "--base", write_checkpoint(folder / "base", BASE), "--progress", "off"]


PAPERS = ("2601.13572 for", "2606.18521 against", "linear and task_arithmetic first", "2511.21437")


def test_task_vectors_that_are_mostly_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 96 columns: 0.125 of them are 12; 64 columns: 8. So 87.5% are zero, and 0.25 leave 75%.
    words = sparse_models(tmp_path, {"a": 0.125, "b": 0.25})
    assert run("compare", *words, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    (finding,) = [text for text in printed["advice"]["findings"] if "exactly zero" in text]
    assert "exactly zero: a 87.5%, b 75.0%. Reinforcement" in finding
    assert all(paper in finding for paper in PAPERS)
    shares = [model["unchanged"] for model in printed["total"]["models"]]
    assert shares == pytest.approx([0.875, 0.75])
    assert parse(printed["advice"]["recipe"]).method == "task_arithmetic"
    assert run("compare", *words) == 0
    table = capsys.readouterr().out
    assert "unchanged" in table and "\n  a  " in table
    assert "87.5%" in table and "exactly zero: a 87.5%" in table


def test_only_models_with_mostly_zeros_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = sparse_models(tmp_path, {"dense": 1, "sparse": 0.25})
    assert run("compare", *words, "--json") == 0
    findings = json.loads(capsys.readouterr().out)["advice"]["findings"]
    (finding,) = [text for text in findings if "exactly zero" in text]
    assert "exactly zero: sparse 75.0%. " in finding


def test_tensors_that_did_not_change_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = sparse_models(tmp_path, {"a": 0.125, "b": 0.25}, gap=True)
    assert run("compare", *words) == 0
    assert "(1 of 2 tensors did not change at all). Reinf" in capsys.readouterr().out


@pytest.mark.parametrize("share", [1, 0.5])
def test_half_of_the_elements_are_not_most(
    share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = sparse_models(tmp_path, {"a": share, "b": share})
    assert run("compare", *words) == 0
    assert "exactly zero" not in capsys.readouterr().out


@pytest.mark.parametrize("case", [name for name in CASES if CASES[name][2]])
def test_the_suggested_search_varies_the_suggested_recipe(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advice = advice_of(case, tmp_path, capsys)
    search = yaml.safe_load(advice["search"])
    assert search["recipe"] == yaml.safe_load(advice["recipe"])
    assert search["space"] and search["perplexity"] and search["direction"] == "minimize"
    first = advice["search"].splitlines()[0]
    assert first == "# save as search.yml, then: merge-launch search search.yml local"


def test_no_search_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert advice_of("unrelated", tmp_path, capsys)["search"] is None


def test_the_search_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*sparse_models(tmp_path, {"a": 1, "b": 1}), "--search", tmp_path / "search.yml"]
    assert run("compare", *words) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "search.yml").read_text() in f"{printed}\n"
    assert printed.rstrip().endswith(f"merge-launch search {tmp_path / 'search.yml'} local")
    assert run("compare", *words) == 4  # edited by hand, perhaps
    assert "already exists" in capsys.readouterr().err


def test_a_search_that_is_not_suggested_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = sparse_models(tmp_path, {"a": 1})
    assert run("compare", *words, "--search", tmp_path / "search.yml") == 3
    assert "not written, since no search is suggested" in capsys.readouterr().err
    assert not (tmp_path / "search.yml").exists()
