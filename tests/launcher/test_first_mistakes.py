"""First mistakes of people who know mergekit: one to three lines name the right words."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from merge_launch import cli, commands
from support.checkpoint_factory import write_checkpoint

LINEAR = "merge_method: linear\nmodels:\n- {model: m1, parameters: {weight: 1}}\n- model: m2\n"
FILES = {
    "recipe.txt": f"{LINEAR}  parameters: {{weight: 1}}\n",
    "README.md": f"# A model\n```yaml\n{LINEAR}  parameters: {{weight: 1}}\n```\n",
    "beside.yml": f"{LINEAR}  weight: 1\n",
    "t.yml": "merge_method: slerp\nbase_model: m1\nmodels: [m1, {model: m2, parameters: {t: 1}}]\n",
    "no-t.yml": "merge_method: slerp\nbase_model: m1\nmodels: [m1, m2]\n",
    "no-base.yml": "merge_method: ties\nmodels: [m1, m2]\nparameters: {weight: 1}\n",
}
WHERE = "the model that the others were trained from"


class Mistake(NamedTuple):
    words: str
    code: int
    told: tuple[str, ...]


MISTAKES = {
    "OUT last": Mistake("m1 m2 out", 4, ("m1: holds a model", "  OUT comes first: OUT MODEL")),
    "OUT forgotten": Mistake(
        "m1 m2",
        2,
        (
            "m1 m2: a merge needs at least two models; give OUT",
            "  of a folder of checkpoints, --last",
        ),
    ),
    "a value beside model": Mistake(
        "beside.yml out",
        2,
        ("beside.yml:5: models[1].weight: a value of linear; it belongs under 'parameters:'",),
    ),
    "t below one model": Mistake(
        "t.yml out", 2, ("t.yml:3: models[1].parameters.t: one value for all models; it belongs",)
    ),
    "t missing": Mistake(
        "no-t.yml out",
        2,
        ("no-t.yml: slerp needs a value of 't'; add 'parameters: {t: …}'", "  for "),
    ),
    "t missing, direct": Mistake(
        "out m1 m2 --method slerp --base-model m1",
        2,
        ("the command: slerp needs a value of 't'; add --param t=…", "  for "),
    ),
    "base missing": Mistake(
        "no-base.yml out", 2, ("no-base.yml: ties needs a base: add 'base_mo",)
    ),
    "base missing, direct": Mistake(
        "out m1 m2 --method ties",
        2,
        (f"the command: ties needs a base: add --base-model MODEL ({WHERE})",),
    ),
    "dare-ties": Mistake(
        "out m1 m2 --method dare-ties",
        2,
        ("--method: unknown method 'dare-ties' (did you", "  meth"),
    ),
    "other sizes": Mistake(
        "out m1 wide", 3, ("wide: hidden_size 8 against 4; widths cannot", "  layers.0.")
    ),
    "GGUF": Mistake(
        "out m1 gguf", 3, ("gguf: no safetensors, only GGUF: m.gguf", "  name the mod")
    ),
    "a card without a recipe": Mistake(
        "gguf/README.md out", 2, ("gguf/README.md: no recipe in this text; a model card has it in",)
    ),
}


@pytest.fixture(autouse=True)
def files(work: Path) -> None:
    for name, width in (("m1", 4), ("m2", 4), ("wide", 8)):
        tensors = {"norm.weight": torch.ones(width), "layers.0.weight": torch.ones(width, width)}
        config = {"model_type": "tiny", "hidden_size": width}
        write_checkpoint(work / name, tensors, config=config)
    (work / "gguf").mkdir()
    (work / "gguf" / "m.gguf").write_bytes(b"GGUF")
    (work / "gguf" / "README.md").write_text("# a model\n")
    for name, text in FILES.items():
        (work / name).write_text(text)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, launch: Callable[..., object], work: Path) -> None:
    mistake = MISTAKES[name]
    done = launch("local", *mistake.words.split())
    lines = done.err.replace(f"{work}/", "").removeprefix("merge-launch: ").splitlines()
    assert done.code == mistake.code, done.err
    assert len(lines) == len(mistake.told), done.err
    for line, told in zip(lines, mistake.told, strict=True):
        assert line.startswith(told)
    assert not (work / "out").exists()


@pytest.mark.parametrize("word", ["recipe.txt", "README.md"])
def test_a_recipe_by_any_name(word: str, launch: Callable[..., object], work: Path) -> None:
    done = launch("check", word, "out")
    assert done.code == 0 and "method     linear" in done.out


def test_a_value_beside_what_has_a_default_is_a_warning(
    launch: Callable[..., object], work: Path
) -> None:
    text = FILES["no-base.yml"] + "base_model: m1\ndensity: 0.5\n"
    (work / "density.yml").write_text(text)
    done = launch("check", "density.yml", "out")
    told = "density.yml:5: density: a value of ties; it belongs under 'parameters:' beside this key"
    assert done.code == 0 and told in done.out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("merge recipe.txt out", "local recipe.txt out"),
        ("recipe.txt out", "local recipe.txt out"),
        ("missing.yml out", "local missing.yml out"),
        ("jobs", "jobs"),
        ("out m1 m2", "out m1 m2"),
        ("-h", "-h"),
        ("", ""),
    ],
)
def test_a_recipe_alone_is_merged_here(
    given: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.with_local(given.split()) == words.split()
    noted = given.split()[:1] in (["recipe.txt"], ["missing.yml"])
    assert ("is merged here, as by 'local'" in capsys.readouterr().err) is noted


def test_a_command_wins_over_a_file_of_its_name(work: Path) -> None:
    (work / "jobs").write_text(FILES["recipe.txt"])
    assert cli.with_local(["jobs"]) == ["jobs"]


def test_commands_of_the_worker_are_reached(launch_process: Callable[..., object]) -> None:
    done = launch_process("verify", "m1")
    assert done.code == 3
    assert done.err.startswith("merge-launch: m1: no merge_manifest.json; not a finished merge")
    done = launch_process("verify", "--ovewrite", "m1")
    assert done.code == 2 and "see merge-launch verify --help" in done.err
    done = launch_process("methods", "slerp")
    assert done.code == 0 and done.out.startswith("slerp\n")


def test_no_words_print_the_help(launch_process: Callable[..., object]) -> None:
    for words in ((), ("compare",), ("local",), ("verify",)):
        done = launch_process(*words)
        usage = " ".join(["usage: NAME", *words])
        told = (
            done.err.lower()
            .replace("python -m merge_launch", "NAME")
            .replace("merge-launch", "NAME")
        )
        assert done.code == 2 and told.startswith(usage), words
    assert launch_process("-h").out == launch_process("--help").out


def test_no_command_of_the_worker_hides_one_of_the_launcher() -> None:
    names = ["merge", *(each.name for each in commands.commands()), *commands.REACHED]
    assert len(set(names)) == len(names)
