"""YAML from strangers: values with lines, and nothing but UsageError for what is not YAML."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.errors import UsageError
from merge_worker.recipe.yaml_document import read_documents


def fault(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_documents(text, "r.yml")
    return str(caught.value)


def test_values_and_their_lines() -> None:
    (document,) = read_documents("a: 1\nb:\n  - x: [1, 2]\n  - y\n", "r.yml")
    assert document.value == {"a": 1, "b": [{"x": [1, 2]}, "y"]}
    assert document.place(("b", 0, "x")) == "r.yml:3: b[0].x"
    assert document.place(("b", 1)) == "r.yml:4: b[1]"
    assert document.place(()) == "r.yml:1"


def test_a_place_that_is_not_there_has_the_line_around_it() -> None:
    (document,) = read_documents("a: 1\nb:\n  c: 2\n", "r.yml")
    assert document.place(("b", "lost")) == "r.yml:2: b.lost"


def test_several_documents_and_none() -> None:
    assert [d.value for d in read_documents("a: 1\n---\na: 2\n", "r")] == [{"a": 1}, {"a": 2}]
    assert read_documents("", "r") == []
    assert read_documents("# only words\n", "r") == []


def test_a_key_that_stands_twice_is_told() -> None:
    (document,) = read_documents("a: 1\nb: {c: 1, c: 2}\na: 3\n", "r")
    assert document.duplicates == (("b", "c"), ("a",))


def test_anchors_and_merge_keys_are_read() -> None:
    (document,) = read_documents("x: &x {w: 1}\ny: {<<: *x, v: 2}\n", "r")
    assert document.value["y"] == {"w": 1, "v": 2}
    assert document.duplicates == ()


def test_a_syntax_error_has_its_line() -> None:
    assert fault("a: 1\nb: [1, 2\nc: 3\n").startswith("r.yml:3: not valid YAML")
    assert fault("a: 'open\n").startswith("r.yml:")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert fault("a: \x1b[31m\n").isprintable()
    assert fault("a: &\x1b b\n").isprintable()


def test_a_bomb_of_aliases_ends_soon() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    began = time.monotonic()
    assert "not a recipe" in fault("\n".join(rows))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("key", ["k", "<<"])
def test_a_bomb_behind_one_key(key: str) -> None:
    """Entries of one path, which a count of paths does not see."""
    rows = ["a0: &a0 {" + ", ".join(["k: 1"] * 10) + "}"]
    rows += [f"a{i}: &a{i} {{{', '.join([f'{key}: *a{i - 1}'] * 10)}}}" for i in range(1, 12)]
    assert "not a recipe" in fault("\n".join(rows))


def test_what_is_too_long() -> None:
    assert "1048577 characters; not a recipe" in fault("a" * (1 + (1 << 20)))
    assert "a number of 1002 digits" in fault("a: 0x" + "f" * 1000)
    assert "a number of 5002 digits" in fault("a: {? 0x" + "f" * 5000 + " : 1}")


def test_a_node_inside_itself() -> None:
    assert "nested too deeply" in fault("&a [*a]")


def test_deep_nesting() -> None:
    assert "nested too deeply" in fault("[" * 5000 + "]" * 5000)


@pytest.mark.parametrize(
    "text",
    [
        "weight: 2001-13-45",
        "a: !!int x",
        "a: !!float x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!python/object:os.system x",
        "a: !!binary é",
        "{[1]: 2}",
        "{{a: 1}: 2}",
        "a: *nowhere",
        "a: " + "9" * 5000,
        "\x00",
        "%YAML 9.9\n---\na",
    ],
)
def test_values_that_cannot_be_made(text: str) -> None:
    assert fault(text).startswith("r.yml")


def test_brackets_in_brackets() -> None:
    """The parser would take minutes for these."""
    for text in ("{" * 20_000, "a: " + "[{" * 10_000, "'x': {{" * 10_000):
        assert "nested too deeply" in fault(text)
    assert read_documents("{a: [{b: '{{ x }}'}]}\n" * 1 + "# }}}}\n", "r")[0].value


@given(st.text() | st.text("[]{}:,-&*!|>'\"%@#? \nax01"))
def test_any_text_is_values_or_a_usage_error(text: str) -> None:
    try:
        for document in read_documents(text, "r"):
            document.place(("a", 0))
    except UsageError as error:
        assert str(error).startswith("r")
