"""Values of parameters: scalars, gradients, filters, scopes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.recipe.parameters import Given, convert, evaluate, look_up, parse_setting, scalars


def value(setting: Any, name: str = "model.layers.3.mlp.weight", t: float = 0.0) -> Any:
    return evaluate(parse_setting(setting), name, t)


def test_a_scalar_is_the_same_everywhere() -> None:
    assert value(0.3, t=1.0) == 0.3
    assert value(False) is False
    assert value("uniform") == "uniform"


@pytest.mark.parametrize(("t", "expected"), [(0, 0), (0.25, 5), (0.5, 10), (0.75, 15), (1, 20)])
def test_a_gradient_is_interpolated(t: float, expected: float) -> None:
    assert value([0, 10, 20], t=t) == expected


def test_a_gradient_of_one_and_of_none() -> None:
    assert value([7], t=1.0) == 7
    with pytest.raises(ValueError, match="an empty list"):
        value([], t=0.5)


def test_numbers_that_yaml_reads_as_text() -> None:
    assert value(["1e-2", 0], t=0.5) == 0.005
    assert convert("1e-5", float) == 1e-5


@pytest.mark.parametrize(("t", "expected"), [(0, True), (0.49, True), (0.5, False), (1, False)])
def test_truth_values_step(t: float, expected: bool) -> None:
    assert value([True, False, False], t=t) is expected


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.floats(0, 1))
def test_a_gradient_stays_within_its_values(values: list[float], t: float) -> None:
    result = value(values, t=t)
    assert min(values) - 1e-9 <= result <= max(values) + 1e-9
    assert value(values, t=0.0) == values[0]
    assert value(values, t=1.0) == pytest.approx(values[-1])


def test_the_first_filter_that_matches_speaks() -> None:
    setting = [
        {"filter": "attn", "value": 1},
        {"filter": "layers.3.", "value": [2, 4]},
        {"filter": "*", "value": 3},
        {"value": 9},
    ]
    assert value(setting, "model.layers.3.self_attn.q") == 1
    assert value(setting, "model.layers.3.mlp", t=0.5) == 3
    assert value(setting, "lm_head") == 3


def test_filters_are_parts_of_names_not_patterns() -> None:
    setting = [{"filter": "layers.1", "value": 1}, {"filter": "mlp.*", "value": 2}]
    assert value(setting, "model.layers.12.mlp.weight") == 1
    assert value(setting, "model.layers.2.mlp.weight") is None


def test_a_single_filter_needs_no_list() -> None:
    assert value({"filter": "mlp", "value": 2}) == 2
    assert value({"filter": "attn", "value": 2}) is None
    assert value({"value": 2}) == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ([1, {"value": 2}], "mixes filters and plain values"),
        ({"filter": "a"}, "a filter is {filter"),
        ({"value": 1, "filtre": "a"}, "a filter is {filter"),
        ({"value": {"value": 1}}, "filters nest only one level"),
        ([{"value": [{"value": 1}]}], "filters nest only one level"),
        (None, "expected a number, truth value, list or filter, got None"),
        ([[1]], "expected a number, truth value, list or filter, got [1]"),
    ],
)
def test_what_is_no_setting(setting: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_setting(setting)
    assert words in str(caught.value)


def given_by(**settings: Any) -> dict[str, Given]:
    return {name: Given(parse_setting(s), f"place of {name}") for name, s in settings.items()}


def test_scopes_fall_through() -> None:
    scopes = [
        given_by(weight={"filter": "attn", "value": 1}),
        given_by(weight=[{"filter": "mlp", "value": []}, {"value": 5}]),
        given_by(weight=2, density=3),
    ]
    assert look_up(scopes, "weight", "attn", 0.0) == (1, "place of weight")
    # The filter matches, its empty gradient says nothing: the next scope does, not the next entry.
    assert look_up(scopes, "weight", "mlp", 0.0) == (2, "place of weight")
    assert look_up(scopes, "weight", "norm", 0.0) == (5, "place of weight")
    assert look_up(scopes, "gamma", "norm", 0.0) is None


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        (1, bool, True),
        (0, bool, False),
        ("yes", bool, True),
        ("False", bool, False),
        (3.0, int, 3),
        ("7", int, 7),
        (True, float, 1.0),
        (2, str, "2"),
    ],
)
def test_conversions(given: Any, kind: type, expected: Any) -> None:
    result = convert(given, kind)
    assert result == expected and type(result) is kind


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ("abc", float, "'abc' is not a number"),
        (float("nan"), float, "nan is not a finite number"),
        ("inf", float, "'inf' is not a finite number"),
        (2, bool, "2 is neither true nor false"),
        ("maybe", bool, "'maybe' is neither true nor false"),
        (1.5, int, "1.5 is not a whole number"),
    ],
)
def test_values_that_do_not_convert(given: Any, kind: type, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(")):
        convert(given, kind)


def test_every_value_of_a_setting() -> None:
    setting = [{"filter": "a", "value": [1, 2]}, {"value": 3}]
    assert list(scalars(parse_setting(setting))) == [1, 2, 3]
    assert list(scalars(parse_setting(4))) == [4]
