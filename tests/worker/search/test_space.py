"""Values of a search: what is written for coordinates, and coordinates of what users write."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.recipe.places import Place
from merge_worker.search.space import Choice, Interval, Range, Share

W = Place.read("w", "s")
UNIT = st.floats(0, 1)


def share(count: int, total: float = 1.0) -> Share:
    return Share(W, total, tuple(Place(f"m.{n}", ("m", str(n))) for n in range(count)))


def test_values_have_four_digits_within_the_bounds() -> None:
    assert Range(W, Interval(0, 1)).put({"w": 0.123456}) == {W: 0.1235}
    assert Range(W, Interval(1e-6, 1e-3, log=True)).put({"w": 0.000123456}) == {W: 0.0001235}
    assert Range(W, Interval(0, 0.99999)).put({"w": 0.99999}) == {W: 0.99999}


def test_steps_and_whole_numbers() -> None:
    assert Range(W, Interval(1, 2, step=0.05)).put({"w": 1.1500000000000001}) == {W: 1.15}
    found = Range(W, Interval(1, 8, step=1, integer=True)).put({"w": 3})
    assert found == {W: 3} and isinstance(found[W], int)


def test_a_gradient_is_a_list() -> None:
    gradient = Range(W, Interval(0, 1), points=3)
    assert list(gradient.axes) == ["w#1", "w#2", "w#3"]
    assert gradient.put({"w#1": 0.1, "w#2": 0.2, "w#3": 0.3}) == {W: [0.1, 0.2, 0.3]}
    assert gradient.coordinates(0.5) == {"w#1": 0.5, "w#2": 0.5, "w#3": 0.5}


def test_choices_of_any_kind() -> None:
    choice = Choice(W, ("ties", 1, True, [0, 1], None, {"a": 1}))
    for value in choice.choices:
        (found,) = choice.put(choice.coordinates(value)).values()
        assert found == value and type(found) is type(value)


def test_stick_breaking_by_hand() -> None:
    # Three weights: 1 − 0.25^(1/2) = 0.5; then half of the rest.
    assert list(share(3).put({"w#1": 0.25, "w#2": 0.5}).values()) == [0.5, 0.25, 0.25]
    assert list(share(2, 4.0).put({"w#1": 0.25}).values()) == [3.0, 1.0]


@given(st.lists(UNIT, min_size=1, max_size=5), st.floats(0.1, 10))
def test_shares_are_not_negative_and_add_up(draws: list[float], total: float) -> None:
    found = share(len(draws) + 1, total)
    weights = list(found.put(dict(zip(found.axes, draws, strict=True))).values())
    assert min(weights) >= 0
    # Each weight is rounded to 4 digits.
    assert math.isclose(sum(weights), total, abs_tol=1e-4 * (len(weights) + 1))


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_shares_come_back(given_weights: list[float]) -> None:
    found = share(len(given_weights))
    weights = [weight / sum(given_weights) for weight in given_weights]
    back = list(found.put(found.coordinates(weights)).values())
    assert all(abs(a - b) < 2e-4 * len(weights) for a, b in zip(weights, back, strict=True))


def test_a_uniform_draw_of_shares_is_uniform() -> None:
    # Of three uniform shares, the mean of each is 1/3 and P(first > 1/2) is 1/4.
    steps = [(n + 0.5) / 200 for n in range(200)]
    found = share(3)
    drawn = [list(found.put({"w#1": a, "w#2": b}).values()) for a in steps for b in steps]
    for position in range(3):
        assert abs(sum(w[position] for w in drawn) / len(drawn) - 1 / 3) < 1e-3
        large = sum(w[position] > 0.5 for w in drawn) / len(drawn)
        assert abs(large - 0.25) < 0.01


@pytest.mark.parametrize(
    ("dimension", "value", "words"),
    [
        (Range(W, Interval(0, 1)), 2, "from 0 to 1, got 2"),
        (Range(W, Interval(0, 1)), True, "got true"),
        (Range(W, Interval(0, 1)), math.nan, "got NaN"),
        (Range(W, Interval(0, 1, step=0.25)), 0.3, "0.3 is not 0 plus steps of 0.25"),
        (Range(W, Interval(0, 1), points=2), [1, 0, 1], "expected 2 numbers, got 3"),
        (Choice(W, (1, "a")), True, 'expected one of 1, "a", got true'),
        (share(2), [0.5], "expected a list of 2 weights"),
        (share(2), [0.5, 0.6], "add up to 1"),
        (share(2), [-0.5, 1.5], "at least 0"),
    ],
)
def test_values_that_a_space_does_not_have(dimension, value, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        dimension.coordinates(value)
    assert words in str(caught.value)


def test_grid_points() -> None:
    from merge_worker.search.space import Options
    from merge_worker.search.study import grid_points

    points = grid_points({"a": Interval(0, 1), "b": Options(("x", "y"))}, 10)
    assert [point["a"] for point in points[::2]] == [0, 0.25, 0.5, 0.75, 1]
    assert {point["b"] for point in points} == {"x", "y"} and len(points) == 10
    logs = [point["a"] for point in grid_points({"a": Interval(0.01, 1, log=True)}, 5)]
    assert all(math.isclose(b / a, 10**0.5) for a, b in pairwise(logs))
    steps = [point["a"] for point in grid_points({"a": Interval(0, 1, step=0.25)}, 60)]
    assert steps == [0, 0.25, 0.5, 0.75, 1]
