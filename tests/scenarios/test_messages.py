"""Errors for wrong commands, recipes, models and outputs, compared with goldens/messages.txt."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.error_cases import Answer, Mistake, make_world, run
from support.input_errors import OF_FAMILIES, OF_PLACES, OF_WEIGHTS
from support.job_errors import OF_JOBS
from support.output_errors import OF_NUMBERS, OF_OUTPUTS
from support.paths import ROOT
from support.recipe_errors import OF_COMMANDS, OF_FILES, OF_RECIPES

GOLDEN = ROOT / "tests" / "goldens" / "messages.txt"
CHAPTERS = {
    "Commands": OF_COMMANDS,
    "Recipes that cannot be read": OF_FILES,
    "Recipes": OF_RECIPES,
    "Models that are not there": OF_PLACES,
    "Files that are damaged or hostile": OF_WEIGHTS,
    "Models that do not fit each other": OF_FAMILIES,
    "Numbers": OF_NUMBERS,
    "Output folders": OF_OUTPUTS,
    "Jobs": OF_JOBS,
}
MISTAKES = [mistake for chapter in CHAPTERS.values() for mistake in chapter]
MOST_LINES = 3
HEAD = """Every message that the tests provoke: the command, the answer, the exit code.

`pytest tests/scenarios/test_messages.py --update-goldens -n 0` renews this file; read the
change as a user would. In the folder are the models base, m1, m2 and m3.
"""


@pytest.fixture(scope="session")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest) -> Iterator[dict[str, Answer]]:
    """Collect the errors by title; write the golden at the end if requested."""
    by_title: dict[str, Answer] = {}
    yield by_title
    update = request.config.getoption("--update-goldens", default=False)
    if update and len(by_title) == len(MISTAKES):
        GOLDEN.write_text(golden_text(by_title), encoding="utf-8")


def golden_text(by_title: dict[str, Answer]) -> str:
    parts = [HEAD]
    for chapter, mistakes in CHAPTERS.items():
        parts.append(f"# {chapter}\n")
        parts += [section(mistake, by_title[mistake.title]) for mistake in mistakes]
    return "\n".join(parts)


def section(mistake: Mistake, answer: Answer) -> str:
    lines = [f"## {mistake.title}", *([mistake.made] if mistake.made else [])]
    lines += (
        [f"| {line}" for line in mistake.recipe.rstrip().splitlines()] if mistake.recipe else []
    )
    lines += [f"$ {command}" for command in (*mistake.first, mistake.command)]
    return "\n".join([*lines, answer.text.rstrip(), f"[exit {answer.code}]"]) + "\n"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_message(
    mistake: Mistake,
    first_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    answers: dict[str, Answer],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    world = tmp_path / "here"
    shutil.copytree(first_world, world)
    inputs = {path: path.read_bytes() for path in world.rglob("*.safetensors") if path.is_file()}
    answer = answers[mistake.title] = run(mistake, world, monkeypatch)
    assert answer.code == mistake.code, answer.text
    assert "Traceback" not in answer.text
    assert all(line.isprintable() for line in answer.text.splitlines())
    if mistake.prepare is None:
        assert all(path.read_bytes() == raw for path, raw in inputs.items()), "inputs are as before"
    if not request.config.getoption("--update-goldens", default=False):
        assert section(mistake, answer) in GOLDEN.read_text(encoding="utf-8")


def test_titles_are_unique() -> None:
    titles = [mistake.title for mistake in MISTAKES]
    assert len(titles) == len(set(titles)) and len(titles) >= 60


def test_the_golden_has_only_these_messages() -> None:
    text = GOLDEN.read_text(encoding="utf-8")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [mistake.title for mistake in MISTAKES]
