"""Quoting: bash and YAML take back unchanged whatever a text holds; and templates are strict."""

import shlex
import subprocess

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_launch.submission.render import environment, shell_word, yaml_block, yaml_text

ODD = [
    "",
    "a b",
    "it's",
    '"q"',
    "$HOME `x` $(y)",
    "a\nb",
    "tab\t\r\x07\x1b",
    "back\\slash\n'",
    "é😀",
    "\n1",
]
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def bash_says(word: str) -> str:
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    return done.stdout.decode()


@pytest.mark.parametrize("text", ODD)
def test_shell_words(text: str) -> None:
    assert bash_says(shell_word(text)) == text
    assert "\n" not in shell_word(text)


@given(st.lists(anything, min_size=20, max_size=60))
@settings(max_examples=20, deadline=None)
def test_any_shell_words(texts: list[str]) -> None:
    words = " ".join(shell_word(text) for text in texts)
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, check=True
    )
    assert done.stdout.decode().split("\0")[:-1] == texts


def test_plain_words_stay_readable() -> None:
    assert shell_word("/a/b-c_d.e") == "/a/b-c_d.e"
    assert shlex.split(shell_word("a 'b'")) == ["a 'b'"]


@given(anything)
@settings(max_examples=500, deadline=None)
def test_yaml_scalars(text: str) -> None:
    assert yaml.safe_load(yaml_text(text)) == text
    assert yaml.safe_load(f"k: {yaml_text([text, text])}") == {"k": [text, text]}


@given(anything)
@settings(max_examples=500, deadline=None)
def test_yaml_blocks(text: str) -> None:
    assert yaml.safe_load(f"a:\n  - {yaml_block(text, 4)}\nb: 1\n") == {"a": [text], "b": 1}


@pytest.mark.parametrize(
    "text", ["a\n\n  b # c: d\n---\nend", "# x", "a\u0085b\nc", "a\n", " a", "\na"]
)
def test_yaml_blocks_of_lines(text: str) -> None:
    assert yaml.safe_load(f"a:\n  - {yaml_block(text, 4)}\n") == {"a": [text]}


def test_a_script_is_readable_in_yaml() -> None:
    assert yaml_block("set -e\n\necho 'é'", 2) == "|-\n  set -e\n\n  echo 'é'"


def test_a_misspelt_variable_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ workdir }}/x").render()
