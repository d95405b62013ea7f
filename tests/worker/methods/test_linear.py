import pytest
import torch

from support.method_driver import merge


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    models = [t(1, 2), t(3, 6)]
    assert merge("linear", models, weight=[1, 3]).tolist() == [2.5, 5]
    assert merge("linear", models, weight=[1, 3], normalize=False).tolist() == [10, 20]
    assert merge("linear", models, weight=[2, -1]).tolist() == [-1, -2]


def test_base_joins_the_average() -> None:
    assert merge("linear", [t(1), t(3)], t(8), weight=[1, 1, 2]).tolist() == [5]


def test_weights_that_add_up_to_zero_are_refused() -> None:
    with pytest.raises(ZeroDivisionError, match="add up to 0"):
        merge("linear", [t(1), t(2)], weight=[1, -1])
    assert merge("linear", [t(1), t(2)], weight=[1, -1], normalize=False).tolist() == [-1]


def test_a_model_without_weight_is_not_looked_at() -> None:
    assert merge("linear", [t(1), t(float("nan"))], weight=[1, 0]).tolist() == [1]
