"""What users see when something is wrong, as text: docs/errors.md is what is printed today.

`pytest tests/test_mistakes.py --update-goldens` writes it anew; read what changed as a user would.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.error_cases import Answer, Mistake, make_world, run
from support.input_errors import OF_FAMILIES, OF_PLACES, OF_WEIGHTS
from support.job_errors import OF_JOBS
from support.output_errors import OF_NUMBERS, OF_OUTPUTS
from support.recipe_errors import OF_COMMANDS, OF_FILES, OF_RECIPES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
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
HEAD = """# What can go wrong, and what is said then

Every error says where, what, and what to do, in one to three lines on standard error. The exit code
tells programs the same: 0 done, 2 the command or the recipe is wrong, 3 an input is, 4 the output
cannot be written, 5 the result would be wrong, 6 the cluster refused, 75 stopped and resumable.
Nothing is written before a merge is known to be possible, and inputs are never changed.

Each answer below is printed by the command above it, which a test runs
(`pytest tests/test_mistakes.py --update-goldens` writes this page). In the folder are the models
`base`, `m1`, `m2` and `m3`.

Files of models are not trusted. `scripts/fuzz` breaks true ones, guided by coverage where atheris
is installed, and `tests/test_fuzz.py` some at every run: each must be answered in words, within 5 s
of processor time and 1 GiB. Of the last long run (300,000 headers, 100,000 each of indexes,
recipes, pickles and tokenizers, 60,000 files of torch.save, 20,000 each of recipes planned with
models, configs, adapters and cards) each was; what it found before is mended and has a test.
"""


@pytest.fixture(scope="session")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def answers(
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Answer]]:
    """Of all mistakes by title; written down at the end if that was asked for."""
    found: dict[str, Answer] = {}
    yield found
    if request.config.getoption("--update-goldens", default=False) and len(found) == len(MISTAKES):
        PAGE.write_text(page(found), encoding="utf-8")


def page(found: dict[str, Answer]) -> str:
    parts = [HEAD]
    for chapter, mistakes in CHAPTERS.items():
        parts.append(f"## {chapter}\n")
        parts += [section(mistake, found[mistake.title]) for mistake in mistakes]
    return "\n".join(parts)


def section(mistake: Mistake, answer: Answer) -> str:
    made = f"{mistake.made}\n\n" if mistake.made else ""
    recipe = f"```yaml\n{mistake.recipe.rstrip()}\n```\n\n" if mistake.recipe else ""
    before = "".join(f"$ {command}\n" for command in mistake.first)
    said = answer.text.rstrip()
    shown = f"```console\n{before}$ {mistake.command}\n{said}\n```"
    return f"### {mistake.title}\n\n{made}{recipe}{shown}\n\nExit code {answer.code}.\n"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_answer_to(
    mistake: Mistake,
    first_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    answers: dict[str, Answer],
) -> None:
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
        assert section(mistake, answer) in PAGE.read_text(encoding="utf-8")


def test_there_are_enough_and_none_twice() -> None:
    titles = [mistake.title for mistake in MISTAKES]
    assert len(titles) == len(set(titles)) and len(titles) >= 60


def test_the_page_has_no_other() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert listed == [mistake.title for mistake in MISTAKES]
