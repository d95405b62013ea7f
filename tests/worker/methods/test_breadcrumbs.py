"""Model Breadcrumbs with and without sign election: the elements that are kept."""

import pytest
import torch
from torch import Tensor

from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BOTH = pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
TEN = torch.arange(1, 11, dtype=torch.float64)


@BOTH
@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [(0.5, 0.2, range(4, 9)), (0.9, 0.3, range(1, 10)), (0.5, 0.01, range(6, 11))],
)
def test_by_hand(method: str, density: float, gamma: float, kept: range) -> None:
    got = merge(method, [TEN], TEN * 0, weight=1, density=density, gamma=gamma)
    assert [x for x in got.tolist() if x] == list(kept)


@BOTH
def test_no_outliers_to_drop_of_few_elements(method: str) -> None:
    """int(gamma · n) = 0 dropped everything in old releases of mergekit."""
    got = merge(method, [TEN], TEN * 0, weight=1, density=0.5)
    assert got.tolist() == [0] * 5 + [6, 7, 8, 9, 10]


@BOTH
def test_ranks_by_hand(method: str) -> None:
    x = torch.arange(100, dtype=torch.float64)
    got = merge(method, [x], x * 0, weight=1, density=0.5, gamma=0.1)
    assert got.nonzero().view(-1).tolist() == list(range(40, 90))


@BOTH
def test_negative_gamma_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="gamma"):
        merge(method, [TEN], TEN * 0, weight=1, density=0.5, gamma=-0.1)


def test_sum_by_hand() -> None:
    models = [t(4, -3, 2, 1), t(-1, 2, -3, 4)]
    assert merge("breadcrumbs", models, t(0, 0, 0, 0), weight=[1, 2]).tolist() == [2, 1, -4, 9]
    got = merge("breadcrumbs", models, t(0, 0, 0, 0), weight=[1, 2], normalize=True)
    assert got.tolist() == pytest.approx([2 / 3, 1 / 3, -4 / 3, 3])


def test_signs_are_elected() -> None:
    models = [t(4, -3, 2, 1), t(-1, 2, -3, 4)]
    got = merge("breadcrumbs_ties", models, t(0, 0, 0, 0), weight=1)
    assert got.tolist() == [4, -3, -3, 5]
    got = merge("breadcrumbs_ties", models, t(0, 0, 0, 0), weight=1, normalize=True)
    assert got.tolist() == [4, -3, -3, 2.5]
    # Two votes: a tie, which is positive.
    got = merge("breadcrumbs_ties", models, t(0, 0, 0, 0), weight=1, consensus_method="count")
    assert got.tolist() == [4, 2, 2, 5]


@BOTH
def test_exactly_k_of_many_equal_magnitudes(method: str) -> None:
    noise = torch.Generator().manual_seed(3)
    x = torch.randint(-3, 4, (150_001,), generator=noise).bfloat16()
    got = merge(method, [x], x * 0, weight=1, density=0.4, gamma=0.2, block=40_000)
    n, k, top = x.numel(), int(0.4 * x.numel()), int(0.2 * x.numel())
    ranked = torch.sort(x.abs().float(), descending=True, stable=True).indices
    want = torch.zeros_like(x)
    want[ranked[top : top + k]] = x[ranked[top : top + k]]
    assert n - top - k > 0
    assert got.equal(want)
