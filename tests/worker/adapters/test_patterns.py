"""Patterns of adapters match as in PEFT, and never take long."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.adapters.patterns import PatternTable, TooComplex

ONE = [
    "a",
    "b",
    "0",
    r"\.",
    ".",
    r"\d",
    r"\W",
    r"\s",
    "[ab]",
    "[^a.]",
    "[a-c0]",
    r"[\d_]",
    r"[^\w]",
]
REPEATS = ["*", "+", "?", "{1,2}", "{2}", "*?", "+?", "{0,3}", "{2,}"]


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: f"({'|'.join(pair)})")
        | st.tuples(inner, st.sampled_from(REPEATS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
        | st.tuples(st.sampled_from(["^", ""]), inner, st.sampled_from(["$", ""])).map("".join)
    )


PATTERNS = st.recursive(st.sampled_from(ONE), joined, max_leaves=8)


@given(PATTERNS, st.text("ab.0_ ", max_size=8))
def test_as_the_engine_of_python(pattern: str, name: str) -> None:
    expected = re.match(rf"(?:.*\.)?(?:{pattern})\Z", name) is not None
    assert (PatternTable([pattern]).first(name) == pattern) == expected


def test_the_first_that_fits_is_taken() -> None:
    table = PatternTable(["k_proj", r"layers\.[01]\..*", "^model.norm", "q_proj"])
    assert table.first("model.layers.1.q_proj") == r"layers\.[01]\..*"
    assert table.first("model.layers.2.q_proj") == "q_proj"
    assert table.first("model.layers.0.k_proj") == "k_proj"
    assert table.first("model.norm") == "^model.norm"
    assert table.first("x.model.norm") is None and table.first("myq_proj") is None


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(a*)*b", "a" * 1000),
        ("(a|aa)+c", "a" * 1000),
        ("(.*.*.*.*.*.*.*.*)x", "a." * 500),
        ("(?:a?){200}a{200}b", "a" * 1000),
        ("a" * 30_000, "a" * 1000),
    ],
)
def test_what_takes_other_engines_ages(pattern: str, name: str) -> None:
    assert PatternTable([pattern]).first(name) is None


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?=a)a", "(?<!a)b", r"(a)\1", r"\ba", "(?i:a)", "(?i)a", "(?:a?){9000}"),
        *("(?:){100000000}", "(?:(?:)){99999999}a", "(?:(?:){9999}){9999}"),
    ],
)
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises((TooComplex, re.error)):
        PatternTable([pattern])


def test_many_patterns_for_many_names() -> None:
    with pytest.raises(TooComplex, match="take too long"):
        PatternTable(f"a{number}" for number in range(200_000))
    table = PatternTable([f"(?:[ab]*{number}){{40}}c" for number in range(50)])
    with pytest.raises(TooComplex, match="take too long"):
        for number in range(100_000):
            table.first(f"{'ab' * 100}{number}")
    modules = [f"model.layers.{layer}.mlp.{part}" for layer in range(100) for part in "abcdefg"]
    every = PatternTable(modules)
    assert [every.first(name) for name in modules] == modules
