"""The command line of merge-launch: one spelling with merge-worker, help, examples, completion."""

import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from merge_launch import cli
from merge_launch.commands import GROUPS, Command, commands
from merge_worker.command_line.parser import Parser
from merge_worker.commands import COMMANDS as OF_WORKER
from support.paths import SOURCES

KNOWN = commands()
PARSERS = {
    " ".join(filter(None, [command.name, place])): command.parser(place)[0]
    for command in KNOWN
    for place in (command.places() or [""])
}


def shown(parser: Parser) -> list:
    return [action for action in parser._actions if action.help != "==SUPPRESS=="]


@pytest.mark.parametrize("name", PARSERS)
def test_help(name: str) -> None:
    for action in shown(PARSERS[name]):
        text = action.help or ""
        assert text and not text.endswith("."), action
        assert text[0].islower() or sum(map(str.isupper, text.split()[0])) > 1, text
        assert "(default" not in text, text
        assert action.nargs == 0 or action.metavar, action
        assert action.metavar not in ("TEXT", "INTEGER", "WORD", "str"), action
    page = PARSERS[name].format_help()
    assert "examples:" in page and all(len(line) <= 100 for line in page.splitlines())


def test_one_name_has_one_form_in_both_programs() -> None:
    """Except for the words of schedulers, which have each their own units."""
    forms, shorts = defaultdict(set), defaultdict(set)
    worker = [command.parser("merge-worker") for command in OF_WORKER]
    for parser in (*PARSERS.values(), *worker):
        scheduler = parser.groups["scheduler"]._group_actions
        for action in (each for each in shown(parser) if each not in scheduler):
            for flag in action.option_strings:
                if action.choices is None and action.nargs != 0 and flag != "--dtype":
                    forms[flag].add(str(action.metavar).partition(".safetensors")[0])
                if len(flag) == 2:
                    shorts[flag].add(action.option_strings[-1])
    forms["--out"] -= {"FILE"}  # of `payload`
    forms["-o"] -= {"FILE"}
    assert {flag: names for flag, names in forms.items() if len(names) > 1} == {}
    assert {flag: names for flag, names in shorts.items() if len(names) > 1} == {}


@pytest.mark.parametrize("command", KNOWN, ids=lambda command: command.name)
def test_examples_are_read(command: Command) -> None:
    name, *words = shlex.split(command.example)
    assert name == command.name and command.group in GROUPS
    command.parser(command.place_in(words))[0].read(words)


@pytest.mark.parametrize("width", [80, 120])
def test_pages_fit_the_terminal_and_cut_nothing_off(
    width: int, launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (["--help"], ["sweep", "--help"], ["slurm", "--help"], ["profile", "-h"]):
        done = launch(*words)
        assert done.code == 0
        assert all(len(line) < width and not line.endswith("...") for line in done.out.splitlines())
    assert all(f"\n  {each.name} " in launch("-h").out for each in KNOWN)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("slrm out a", "unknown command 'slrm' (did you mean 'slurm'?)"),
        ("slurm out a --tme 3", "unknown option '--tme' (did you mean '--time'?)"),
        ("sweep s.yml slrum", "unknown backend 'slrum' (did you mean 'slurm'?)"),
        ("profile sohw x", "unknown action 'sohw' (did you mean 'show'?)"),
        ("eval out slrum --tasks a", "(did you mean 'slurm'?)"),
    ],
)
def test_wrong_words(words: str, text: str, launch) -> None:
    done = launch(*words.split())
    assert done.code == 2 and text in done.err and done.err.count("\n") <= 3


def test_values_that_begin_with_a_dash(launch) -> None:
    text = launch("render", "slurm", "out", "a", "b", "--directive", "--constraint=a100").out
    assert "#SBATCH --constraint=a100" in text
    assert launch("render", "slurm", "out", "a", "b", "--weights", "-1,2").code == 0


def test_older_spellings(launch, work: Path) -> None:
    assert launch("payload", "--output", "w.pyz").code == 0 and (work / "w.pyz").exists()
    (parser,) = (p for name, p in PARSERS.items() if name == "search best")
    assert parser.read(["s.yml", "best", "-o", "b.yml"]).recipe == "b.yml"
    assert parser.read(["s.yml", "best", "--output", "b.yml"]).recipe == "b.yml"


def test_a_reader_that_stops_reading() -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "merge_launch", "--help"]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, env=env)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, launch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "guarded", interrupted)
    done = launch("jobs")
    assert (done.code, done.err) == (130, "merge-launch: interrupted\n")


SHELL = r"""
eval "$(merge-launch --print-completion bash)"
merge() { COMP_LINE="$1" COMP_POINT=${#1}; read -ra COMP_WORDS <<< "$1"
    [[ $1 != *' ' ]] || COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_TYPE=9
    COMPREPLY=(); _python_argcomplete merge-launch; echo "${COMPREPLY[@]}"; }
for line; do merge "$line"; done
"""


def test_completion_in_bash(work: Path, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    program = tmp_path / "bin" / "merge-launch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m merge_launch "$@"\n')
    program.chmod(0o755)
    (work / "models").mkdir()
    (work / "sweep.yml").touch()
    expected = {
        "merge-launch slu": "slurm",
        "merge-launch slurm out m --method tie": "ties",
        "merge-launch slurm out mod": "models/",
        "merge-launch sweep swe": "sweep.yml",
        "merge-launch sweep sweep.yml res": "results",
        "merge-launch sweep sweep.yml slurm --partit": "--partition",
        "merge-launch render pb": "pbs",
        "merge-launch profile show polar": "polaris",
        "merge-launch compare a --base-m": "--base-model",
    }
    env = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")]),
    }
    argv = ["bash", "--norc", "-c", SHELL, "bash", *expected]
    done = subprocess.run(argv, cwd=work, env=env, capture_output=True, text=True)
    assert [line.strip() for line in done.stdout.splitlines()] == list(expected.values()), (
        done.stderr
    )
