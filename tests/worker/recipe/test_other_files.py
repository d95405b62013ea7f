"""Searches and sweeps where a recipe is expected: one sentence, and the command that takes them."""

from pathlib import Path

import pytest

from merge_worker.errors import UsageError
from merge_worker.recipe import parse
from merge_worker.recipe.other_files import is_evolve_file
from support.recipes import run

GENOME = "genome: {models: [a, b], merge_method: linear}\ntasks: [mine]\n"
FILES = {
    GENOME: ("a search of mergekit-evolve", "search"),
    "genome: {}\n": ("a search of mergekit-evolve", "search"),
    "recipe: r.yml\nspace: {parameters.t: [0, 1]}\n": ("a search over values", "search"),
    "recipe: {merge_method: slerp}\nevaluate: x\n": ("a search over values", "search"),
    "recipe: r.yml\ngrid: {parameters.t: [0, 1]}\n": ("a sweep over values", "sweep"),
    "recipe: r.yml\nlist: [{parameters.t: 0}]\n": ("a sweep over values", "sweep"),
}


@pytest.mark.parametrize("text", FILES)
def test_named_with_the_command(text: str) -> None:
    kind, command = FILES[text]
    with pytest.raises(UsageError) as caught:
        parse(text, "file.yml")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"file.yml: this is {kind}") and first.endswith(", not a recipe")
    assert second.startswith(f"  start it: merge-launch {command} file.yml local")


@pytest.mark.parametrize("command", ["merge", "check"])
def test_from_the_command_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "genome.yml"
    file.write_text(GENOME)
    out = [tmp_path / "out"] if command == "merge" else []
    assert run(command, file, *out) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 2 and "this is a search of mergekit-evolve" in printed
    assert f"merge-launch search {file} local" in printed
    assert not (tmp_path / "out").exists()


def test_recipes_with_such_keys_are_recipes() -> None:
    with pytest.raises(UsageError) as caught:
        parse("merge_method: nothing\ngenome: 5\n", "r.yml")
    assert "this is" not in str(caught.value)
    assert not is_evolve_file({"merge_method": "linear", "genome": {}})
    assert not any(map(is_evolve_file, ({"recipe": {}}, [], None, "genome", {"tasks": []})))
