"""The command line of merge-worker: one spelling and one order in all commands, help, examples."""

import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from merge_worker.command_line import completion
from merge_worker.command_line.parser import GROUPS, Parser
from merge_worker.commands import COMMANDS
from merge_worker.commands import GROUPS as COMMAND_GROUPS
from merge_worker.errors import UsageError
from merge_worker.system.packages import how_to_install
from support.paths import SOURCES
from support.recipes import run
from support.shell_completion import complete

PARSERS = {command.name: command.parser("merge-worker") for command in COMMANDS}


def shown(parser: Parser) -> list:
    return [a for a in parser._actions if a.help != "==SUPPRESS=="]


@pytest.mark.parametrize("name", PARSERS)
def test_help(name: str) -> None:
    parser = PARSERS[name]
    for action in shown(parser):
        text = action.help or ""
        assert text and text[0] not in " ;" and not text.endswith("."), action
        assert text[0].islower() or sum(map(str.isupper, text.split()[0])) > 1, text
        assert action.nargs == 0 or action.metavar, action
        assert action.metavar not in ("TEXT", "INTEGER", "FLOAT", "WORD", "str"), action
        if action.option_strings and action.default not in (None, False, "", (), []):
            assert action.nargs == 0 or "default: " in text, action
    page = parser.format_help()
    assert page.startswith(f"usage: merge-worker {name} [options]") and "examples:" in page
    assert all(len(line) <= 100 for line in page.splitlines())


def test_one_name_has_one_form_in_all_commands() -> None:
    forms, shorts = defaultdict(set), defaultdict(set)
    for parser in PARSERS.values():
        for action in shown(parser):
            for flag in action.option_strings:
                if action.choices is None and action.nargs != 0:
                    forms[flag].add(str(action.metavar).partition(".safetensors")[0])
                if len(flag) == 2:
                    shorts[flag].add(action.option_strings[-1])
    assert {flag: names for flag, names in forms.items() if len(names) > 1} == {}
    assert {flag: names for flag, names in shorts.items() if len(names) > 1} == {}


def test_one_order_of_words() -> None:
    """OUT stands before a list of models, and behind all other words; --out does instead."""
    for name, parser in PARSERS.items():
        words = [a for a in shown(parser) if not a.option_strings]
        places = [i for i, action in enumerate(words) if str(action.metavar).startswith("OUT")]
        if not places or name in ("verify", "report"):  # they only read OUT
            continue
        has_list = any(action.nargs in ("+", "*") for action in words)
        assert places == ([0] if has_list else [len(words) - 1]), name
        assert {"-o", "--out"} <= {f for a in shown(parser) for f in a.option_strings}, name


def test_the_base_is_base_model_everywhere() -> None:
    flags = {f for p in PARSERS.values() for a in shown(p) for f in a.option_strings}
    assert [flag for flag in flags if flag.startswith("--base")] in (
        ["--base-model", "--base-name"],
        ["--base-name", "--base-model"],
    )
    assert not flags & {"--output", "--base"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_read(command) -> None:
    name, *words = shlex.split(command.example)
    assert name == command.name
    PARSERS[name].read(words)
    assert command.group in COMMAND_GROUPS


def test_options_stand_in_groups() -> None:
    page = PARSERS["merge"].format_help()
    titles = [line[:-1] for line in page.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles[0] == "arguments" and titles[-1] == "examples"
    assert titles[1:-1] == [title for title in GROUPS if title in titles]
    assert {"merge", "output", "machine"} <= set(titles)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("average out a b", ("out", ["a", "b"])),
        ("average -o out a b", ("out", ["a", "b"])),
        ("average a --out=out b", ("out", ["a", "b"])),
        ("average --out out a", ("out", ["a"])),
        ("average out --dtype float32 a --seed 1 b", ("out", ["a", "b"])),
        ("average out --weights -1,2 a b", ("out", ["a", "b"])),
        ("average out -- a b", ("out", ["a", "b"])),
    ],
)
def test_words_in_any_order(words: str, expected: tuple[str, list[str]]) -> None:
    name, *rest = words.split()
    arguments = PARSERS[name].read(rest)
    assert (arguments.out, arguments.model) == expected


def test_several_pairs_and_lists_of_values() -> None:
    arguments = PARSERS["merge"].read(["r.yml", "-a", "s.yml", "t", "out", "--seed", "3"])
    assert (arguments.recipe, arguments.out) == ("r.yml", "out")
    assert arguments.also == [["s.yml", "t"]] and arguments.seed == 3
    arguments = PARSERS["report"].read(["out", "--models", "a", "b", "--json"])
    assert (arguments.out, arguments.models, arguments.json) == ("out", ["a", "b"], True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("average out a --ouut b", "unknown option '--ouut' (did you mean '--out'?)"),
        ("compare --jsn", "unknown option '--jsn' (did you mean '--json'?)"),
        ("merge r.yml out -o out2", "OUT is given twice"),
        ("average -o out", "required: MODEL"),
        ("extract-lora a b", "give MODEL OUT --base-model BASE"),
        ("comprae a b", "unknown command 'comprae' (did you mean 'compare'?)"),
        ("average out a --dtype bfloat", "(did you mean 'bfloat16'?)"),
    ],
)
def test_wrong_words(words: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words.split()) == 2
    assert text in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from merge_worker.cli import main\n"
        "for name in [''] + sys.argv[1:]: assert main([*filter(None, [name]), '--help']) == 0\n"
        "print({'torch', 'numpy', 'transformers', 'yaml'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *PARSERS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    assert done.returncode == 0 and done.stderr == "set()\n", done.stderr


def test_completion(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    (tmp_path / "models").mkdir()
    (tmp_path / "recipe.yml").touch()
    assert complete("merge-worker per", tmp_path) == ["perplexity"]
    assert complete("merge-worker average out m --method tie", tmp_path) == ["ties"]
    assert complete("merge-worker average out mod", tmp_path) == ["models/"]
    assert complete("merge-worker merge rec", tmp_path) == ["recipe.yml"]
    assert complete("merge-worker merge r.yml --dtype fl", tmp_path) == [
        "float16",
        "float32",
        "float64",
    ]
    assert complete("merge-worker compare a --base-m", tmp_path) == ["--base-model"]


def test_completion_without_argcomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    with pytest.raises(UsageError) as caught:
        completion.script("merge-worker", "bash")
    assert how_to_install("argcomplete") in str(caught.value)
