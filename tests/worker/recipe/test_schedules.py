import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.errors import UsageError
from merge_worker.recipe.schedules import schedule_weights


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("minus-sqrt", [0.5, 0.2071, 0.1589, 0.1340]),
        ("minus-sqrt", [0.4472, 0.1852, 0.1421, 0.1198, 0.1056]),
        ("uniform", [0.25] * 4),
        ("linear", [0.25] * 4),
        ("ema:0.5", [1 / 7, 2 / 7, 4 / 7]),
        ("ema", [0.81 / 2.71, 0.9 / 2.71, 1 / 2.71]),
        ("ema:1", [1 / 3] * 3),
        ("last-k:2", [0, 0, 0.5, 0.5]),
        ("last-k:1", [0, 1]),
    ],
)
def test_values(schedule: str, want: list[float]) -> None:
    assert schedule_weights(schedule, len(want)) == pytest.approx(want, abs=6e-5)


@given(st.sampled_from(["uniform", "linear", "minus-sqrt", "ema:0.7"]), st.integers(1, 50))
def test_they_add_up_to_one(schedule: str, count: int) -> None:
    weights = schedule_weights(schedule, count)
    assert len(weights) == count
    assert math.fsum(weights) == pytest.approx(1, abs=1e-14)
    assert all(weight > 0 for weight in weights)


@given(st.integers(2, 40))
def test_an_average_of_rates_is_the_decay(count: int) -> None:
    """The purpose of the weights: the i-th step is part of all checkpoints from the i-th on."""
    weights = schedule_weights("minus-sqrt", count)
    for i in range(1, count):
        assert math.fsum(weights[i:]) == pytest.approx(1 - math.sqrt(i / count))
    linear = schedule_weights("linear", count)
    for i in range(1, count):
        assert math.fsum(linear[i:]) == pytest.approx(float(1 - Fraction(i, count)))


@pytest.mark.parametrize(
    ("schedule", "count", "message"),
    [
        ("minus_sqrt", 3, "did you mean 'minus-sqrt'"),
        ("cosine", 3, "one of uniform, linear, minus-sqrt"),
        ("", 3, "no schedule ''"),
        ("uniform:2", 3, "no schedule 'uniform:2'"),
        ("ema:0", 3, "BETA is a number above 0, at most 1"),
        ("ema:1.5", 3, "BETA is"),
        ("ema:x", 3, "BETA is"),
        ("ema:nan", 3, "BETA is"),
        ("last-k", 3, "no schedule 'last-k'"),
        ("last-k:0", 3, "from 1 to 3"),
        ("last-k:4", 3, "from 1 to 3"),
        ("last-k:²", 3, "from 1 to 3"),
        ("last-k:x", 3, "from 1 to 3"),
        ("uniform", 0, "no checkpoints"),
    ],
)
def test_faults(schedule: str, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("^", "")):
        schedule_weights(schedule, count)
