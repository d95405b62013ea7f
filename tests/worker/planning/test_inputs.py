"""check tells what is wrong with a recipe and which of its models are missing, all at once."""

from pathlib import Path

import pytest
from torch import zeros

from merge_worker.cli import main
from merge_worker.planning.inputs import missing_models
from support.checkpoint_factory import write_checkpoint

RECIPE = """
merge_method: lineal
base_model: base
dtype: bfloat61
models:
- gone+/no/adapter
- {model: org/name, parameters: {weight: 1}}
- {model: here, parameters: {weigth: 1}}
- {model: /nowhere/at/all}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("here", "bases"):
        write_checkpoint(tmp_path / name, {"w": zeros(2)}, config={})
    (tmp_path / "r.yml").write_text(RECIPE)
    return tmp_path


def test_everything_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "r.yml"]) == 2
    errors = capsys.readouterr().err
    for word in ("lineal", "base: no such folder", "gone+/no/adapter: no such folder", "/nowhere"):
        assert word in errors
    assert "did you mean 'bases'" in errors
    assert "org/name:" not in errors and "here:" not in errors, "of the hub; there"


def test_the_launcher_too(folder: Path) -> None:
    from merge_launch.commands.check import check_command
    from merge_worker.errors import UsageError

    given = {"profile": None}
    with pytest.raises(UsageError, match=r"(?s)lineal.*base: no such folder.*/nowhere"):
        check_command(["r.yml"], given)


def test_results_of_other_documents_are_no_models(tmp_path: Path) -> None:
    text = "name: one\nmodels: [a]\n---\nmodels: [{model: one}, {model: b}]\n"
    assert [line.split(":")[0] for line in missing_models(text, tmp_path)] == ["a", "b"]


BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12))
NO_RECIPES = [
    "",
    "- [",
    "models: 3\n",
    "models: [[[[a]]]]\n",
    "a: &a [*a]\n",
    "name: [a]\n",
    "!!int x",
]


@pytest.mark.parametrize("text", [*NO_RECIPES, BOMB, "[" * 3000])
def test_texts_that_are_no_recipes(text: str, tmp_path: Path) -> None:
    assert missing_models(text, tmp_path) == []
