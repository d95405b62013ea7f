"""Axes: round ticks between the ends, labels that differ, every value inside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.drawing.axes import choice_axis, number_axis, round_values


def labels(*values: float) -> list[str]:
    return [label for _, label in number_axis("x", values).ticks]


def test_round_ticks() -> None:
    assert round_values(0, 1, 6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert round_values(-3, 4, 4) == pytest.approx([-2, 0, 2, 4])
    assert labels(0, 1) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert labels(0.6112, 0.6134) == ["0.6115", "0.612", "0.6125", "0.613", "0.6135"]
    assert labels(0, 60) == ["0", "20", "40", "60"]
    assert labels(-0.2, 0.2) == ["-0.2", "-0.1", "0", "0.1", "0.2"]


def test_orders_of_magnitude() -> None:
    axis = number_axis("x", [3, 30, 300, 90000])
    assert axis.log and [label for _, label in axis.ticks] == [
        "10",
        "100",
        "1000",
        "10000",
        "100000",
    ]
    assert axis.fraction(3) == pytest.approx(1 / 22, abs=0.01)
    assert not number_axis("x", [0, 90000]).log and not number_axis("x", [3, 90]).log
    # Evenly spread values are not logarithmic, however near to 0 the least comes.
    assert not number_axis("x", [0.001, *(n / 10 for n in range(1, 11))]).log


def test_one_value_and_none() -> None:
    for values in ([], [5.0], [0.0], [-2.0, -2.0]):
        axis = number_axis("x", values)
        assert axis.low < axis.high and axis.ticks
        assert all(axis.low < value < axis.high for value in values)


def test_choices() -> None:
    axis = choice_axis("method", ["ties", "dare_ties"])
    assert axis.ticks == ((0, "ties"), (1, "dare_ties"))
    assert axis.fraction(0) == 0.25 and axis.fraction(1) == 0.75


finite = st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-12)


@given(st.lists(finite, min_size=1, max_size=20))
def test_any_values(values: list[float]) -> None:
    axis = number_axis("x", values)
    assert all(0 <= axis.fraction(value) <= 1 for value in values)
    assert all(axis.low <= tick <= axis.high for tick, _ in axis.ticks) and len(axis.ticks) <= 7
    texts = [label for _, label in axis.ticks]
    assert len(set(texts)) == len(texts)
