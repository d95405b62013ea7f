"""Exit codes are a contract with schedulers; texts must be safe for a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker import errors
from merge_worker.messages import counted, first_names, nearest, printable


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.InputError, 3),
        (errors.OutputError, 4),
        (errors.ResultError, 5),
        (errors.Stopped, 75),
    ],
)
def test_exit_codes_of_the_contract(kind: type[errors.WorkerError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, errors.WorkerError)


@pytest.mark.parametrize(
    ("words", "singular"),
    [
        ("tensors", "1 tensor"),
        ("bytes", "1 byte"),
        ("more tokens", "1 more token"),
        ("tensors differ in shape", "1 tensor differs in shape"),
        ("values are NaN or Inf", "1 value is NaN or Inf"),
        ("tensors have no scales", "1 tensor has no scales"),
        (
            "tensors that are not to be merged are copied",
            "1 tensor that is not to be merged is copied",
        ),
        ("tensors that the first model has not", "1 tensor that the first model has not"),
        ("intermediate results take", "1 intermediate result takes"),
        ("tensors of the adapter match nothing", "1 tensor of the adapter matches nothing"),
    ],
)
def test_one_is_not_several(words: str, singular: str) -> None:
    assert counted(1, words) == singular
    assert [counted(n, words) for n in (0, 2, 11)] == [f"{n} {words}" for n in (0, 2, 11)]


def test_nearest_name_forgives_case_and_dashes() -> None:
    assert nearest("Dare-Ties", ["ties", "dare_ties"]) == " (did you mean 'dare_ties'?)"
    assert nearest("linaer", ["linear", "slerp"]) == " (did you mean 'linear'?)"
    assert nearest("xyz", ["linear", "slerp"]) == ""


def test_nearest_name_is_a_slip_or_a_short_form() -> None:
    assert nearest("bf16", ["bfloat16", "float32"]) == " (did you mean 'bfloat16'?)"
    assert nearest("dare", ["ties", "dare_ties"]) == " (did you mean 'dare_ties'?)"
    assert nearest("weights", ["temperature", "weight"]) == " (did you mean 'weight'?)"
    for word, name in (("weight_decay", "weight"), ("tokens", "tokenizer")):
        assert nearest(word, [name]) == ""


def test_first_names_never_flood() -> None:
    assert first_names("ab") == "a, b"
    assert first_names("abc") == "a, b, c"
    assert first_names("abcdefg") == "a, b, c and 4 more"
    assert first_names([]) == ""


def test_control_characters_are_shown_not_sent() -> None:
    assert printable("a\x1b[31mb") == "a\\x1b[31mb"
    assert printable("a\nb\tc\x07") == "a\\nb\\tc\\x07"
    assert printable("\u202eevil") == "\\u202eevil", "turns the writing direction around"
    assert printable("größe 模型") == "größe 模型"


@given(st.text(st.characters(codec=None)))
def test_printable_is_printable_and_stays_so(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
