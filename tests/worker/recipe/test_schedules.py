import math
from fractions import Fraction
from itertools import pairwise

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
        ("cosine", [0.1464, 0.3536, 0.3536, 0.1464]),
        ("cosine", [0.25, 0.75 - 0.25, 0.25]),
        ("inverse", [1 - 1 / 4, 1 / 4 - 1 / 7, 1 / 7]),
        ("inverse:0.5", [1 - 3 / 4, 3 / 4 - 3 / 5, 3 / 5]),
        ("inverse:1", [0, 0, 1]),
        ("minus-sqrt__reverse", [0.1340, 0.1589, 0.2071, 0.5]),
        ("last-k:2__reverse", [0.5, 0.5, 0, 0]),
        # random.Random(0).shuffle: the third, the first, the second, the fourth.
        ("minus-sqrt__scramble", [0.1589, 0.5, 0.2071, 0.1340]),
        ("cosine", [1]),
        ("inverse__scramble:3", [1]),
    ],
)
def test_values(schedule: str, want: list[float]) -> None:
    assert schedule_weights(schedule, len(want)) == pytest.approx(want, abs=6e-5)


EVERY = ["uniform", "linear", "minus-sqrt", "cosine", "inverse", "inverse:0.3", "ema:0.7"]


@given(st.sampled_from(EVERY), st.integers(1, 50))
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


DECAYS = {
    "linear": lambda x: 1 - x,
    "minus-sqrt": lambda x: 1 - x**0.5,
    "cosine": lambda x: math.cos(math.pi * x / 2) ** 2,
    "inverse": lambda x: 0.1 / (0.1 + 0.9 * x),
}


@given(st.sampled_from(sorted(DECAYS)), st.integers(2, 40))
def test_coefficients_of_a_decay(name: str, count: int) -> None:
    """c_last = s((n-1)/n), c_i = s(i/n) - s((i+1)/n), c_0 what is left of 1 (Megatron-LM)."""
    rates = [DECAYS[name](i / count) for i in range(count)]
    want = [a - b for a, b in pairwise(rates)] + [rates[-1]]
    want[0] = 1 - sum(want[1:])
    assert schedule_weights(name, count) == pytest.approx(want, abs=1e-14)


@given(st.sampled_from(EVERY), st.integers(1, 30), st.integers(0, 10**6))
def test_controls_have_the_same_weights(name: str, count: int, seed: int) -> None:
    weights = schedule_weights(name, count)
    assert schedule_weights(f"{name}__reverse", count) == weights[::-1]
    scrambled = schedule_weights(f"{name}__scramble:{seed}", count)
    assert sorted(scrambled) == sorted(weights)
    assert scrambled == schedule_weights(f"{name}__scramble:{seed}", count)


def test_scrambled_orders_differ_by_seed() -> None:
    orders = {schedule_weights(f"minus-sqrt__scramble:{seed}", 6) for seed in range(20)}
    assert len(orders) > 15
    first = schedule_weights("minus-sqrt__scramble", 6)
    assert first == schedule_weights("minus-sqrt__scramble:0", 6)


@pytest.mark.parametrize(
    ("schedule", "count", "message"),
    [
        ("minus_sqrt", 3, "did you mean 'minus-sqrt'"),
        ("sine", 3, "one of uniform, linear, minus-sqrt"),
        ("cosine:1", 3, "no schedule 'cosine:1'"),
        ("cosine:", 3, "no schedule 'cosine:'"),
        ("inverse:0", 3, "FLOOR is a number above 0, at most 1"),
        ("inverse:2", 3, "FLOOR is"),
        ("cosine__", 3, "no schedule 'cosine__'"),
        ("cosine__reversed", 3, "did you mean 'reverse'"),
        ("cosine__reverse:1", 3, "no schedule 'cosine__reverse:1'"),
        ("cosine__scramble:x", 3, "SEED is a whole number"),
        ("cosine__scramble:-1", 3, "SEED is a whole number"),
        ("__reverse", 3, "no schedule '__reverse'"),
        ("last-k:4__reverse", 3, "last-k:4__reverse: N is a whole number from 1 to 3"),
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
