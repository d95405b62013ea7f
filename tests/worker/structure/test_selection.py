"""Parts of models: what the patterns mean, and that the rest is the base's, bit for bit."""

from pathlib import Path

import pytest
import torch

from merge_worker import cli
from merge_worker.structure.selection import is_selected, matches_pattern
from support.checkpoint_factory import read_tensors, write_checkpoint

ROUTER = "model.layers.3.mlp.gate.weight"


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("mlp.gate", ROUTER, True),
        ("mlp.gate", "model.layers.3.mlp.gate_proj.weight", False),
        ("model", ROUTER, True),
        ("layers.3", "model.layers.33.mlp.gate.weight", False),
        ("*.gate.*", ROUTER, True),
        ("gate*", ROUTER, False),
        ("model.layers.[0-2].*", ROUTER, False),
        ("lm_head", "lm_head.weight", True),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches_pattern(pattern, name) is expected


def test_what_is_excluded_is_not_included() -> None:
    assert is_selected(ROUTER, ["model.*"], []) and not is_selected(
        ROUTER, ["model.*"], ["mlp.gate"]
    )
    assert not is_selected("visual.x", ["model.*"], []) and is_selected(
        "visual.x", [], ["mlp.gate"]
    )


def tensors(seed: int, place: str, *others: str) -> dict[str, torch.Tensor]:
    names = [f"{place}layers.{n}.mlp.{word}.weight" for n in range(2) for word in ("gate", "up")]
    names += [f"{place}embed_tokens.weight", "lm_head.weight", *others]
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randint(-99, 99, (4, 6), generator=random).float() for name in names}


def models(folder: Path) -> tuple[Path, Path]:
    """A model that sees, and another one of language alone."""
    seeing = tensors(1, "model.language_model.", "model.visual.patch.weight", "mtp.head.weight")
    return (
        write_checkpoint(folder / "seeing", seeing),
        write_checkpoint(folder / "reading", tensors(2, "model.")),
    )


def check(folder: Path, merged_words: tuple[str, ...]) -> None:
    out, seeing = read_tensors(folder / "out"), read_tensors(folder / "seeing")
    reading = read_tensors(folder / "reading")
    assert out.keys() == seeing.keys()
    for name, tensor in out.items():
        expected = seeing[name]
        if any(word in name for word in merged_words) and "mlp.gate" not in name:
            expected = (expected + reading[name.replace("language_model.", "")]) / 2
        assert torch.equal(tensor, expected), name


def test_a_language_model_into_one_that_sees(tmp_path: Path) -> None:
    seeing, reading = models(tmp_path)
    options = ["--include", "language_model,lm_head", "--exclude", "mlp.gate"]
    command = ["average", str(tmp_path / "out"), str(seeing), str(reading), "--progress", "off"]
    assert cli.main([*command, *options]) == 0
    check(tmp_path, ("language_model", "lm_head"))


def test_patterns_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeing, reading = models(tmp_path)
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        f"merge_method: linear\nmodels: [{seeing}, {reading}]\nparameters: {{weight: 1}}\n"
        f"include: [language_model, lm_head]\nexclude: mlp.gate\n"
    )
    assert cli.main(["merge", str(recipe), str(tmp_path / "out"), "--progress", "off"]) == 0
    check(tmp_path, ("language_model", "lm_head"))
    errors = capsys.readouterr().err
    assert "4 tensors that are not to be merged are copied: " in errors


def test_modules_of_a_recipe(tmp_path: Path) -> None:
    seeing, reading = models(tmp_path)
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: linear\nparameters: {weight: 1}\nexclude: [mlp.gate]\n"
        f"modules: {{language_model: {{models: [{seeing}, {reading}]}}}}\n"
    )
    assert cli.main(["merge", str(recipe), str(tmp_path / "out"), "--progress", "off"]) == 0
    check(tmp_path, ("language_model",))


def test_without_patterns_the_rest_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["average", str(tmp_path / "out"), *map(str, models(tmp_path))]
    assert cli.main([*command, "--progress", "off"]) == 3
    errors = capsys.readouterr().err
    assert "2 tensors of" in errors and "model.visual.patch.weight" in errors


def test_a_pattern_that_fits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["average", str(tmp_path / "out"), *map(str, models(tmp_path))]
    assert cli.main([*command, "--include", "langage_model"]) == 2
    errors = capsys.readouterr().err
    assert "no tensor matches 'langage_model' (did you mean 'language_model'?)" in errors
