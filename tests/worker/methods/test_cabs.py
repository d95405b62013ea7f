import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, weight_lists
from support.method_driver import merge
from support.reference_formulas import order


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    first, second = t(5, -4, 1, 2, 3, 9), t(8, 7, 6, -1, 2, 5)
    got = merge("cabs", [first, second], first * 0, n=1, m=3)
    assert got.tolist() == [5, 7, 0, 0, 2, 9]
    swapped = merge("cabs", [second, first], first * 0, n=1, m=3)
    assert swapped.tolist() == [8, -4, 0, 0, 3, 5]


def test_weights_and_no_overlap() -> None:
    noise = torch.Generator().manual_seed(0)
    models = [torch.randn(4, 64, generator=noise, dtype=torch.float64) for _ in range(3)]
    got = merge("cabs", models, models[0] * 0, weight=[1, 2, 4], n=4, m=16)
    kept = [got.eq(x * w) for x, w in zip(models, (1, 2, 4), strict=True)]
    assert [int(k.sum()) for k in kept] == [64, 64, 64]
    assert int(got.ne(0).sum()) == 192


def test_what_did_not_change_is_left_to_later_models() -> None:
    got = merge("cabs", [t(1, 0, 0, 0), t(5, 4, 3, 2)], t(0, 0, 0, 0), n=2, m=4)
    assert got.tolist() == [1, 4, 3, 0]


def test_equal_magnitudes_in_order() -> None:
    x = t(2, 1, -2, 2, 1, 2)
    assert merge("cabs", [x], x * 0, n=2, m=6).tolist() == [2, 0, -2, 0, 0, 0]


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2)])
def test_impossible_shares_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="n must be between 1 and m"):
        merge("cabs", [t(1)], t(0), n=n, m=m)


def reference(case: Case, weights: list[float], n: int, m: int) -> Tensor:
    shape = case.base.shape
    length = case.base.numel() // shape[0] if case.base.ndim > 1 and shape[0] else None
    base = case.base.reshape(-1, length) if length else case.base.reshape(1, -1)
    out = base.clone()
    for row in range(base.shape[0]):
        for start in range(0, base.shape[1], m):
            group = slice(start, start + m)
            free = torch.ones(base[row, group].shape, dtype=torch.bool)
            for x, weight in zip(case.models, weights, strict=True):
                delta = (x.reshape(base.shape)[row, group] - base[row, group]) * free
                for i in order(delta)[:n]:
                    if delta[i] != 0:
                        out[row, start + i] += weight * delta[i]
                        free[i] = False
    return out.reshape(shape)


@given(
    cases(0, 3),
    weight_lists(3),
    st.sampled_from([(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (64, 256)]),
    st.sampled_from([1, 64, 10**6]),
)
def test_formula(case: Case, weights: list[float], share: tuple[int, int], block: int) -> None:
    weights = weights[: len(case.models)]
    got = merge("cabs", *case, block=block, weight=weights, n=share[0], m=share[1])
    if case.base.numel():
        assert close(got, reference(case, weights, *share), 10 * size_of(case))


@pytest.mark.parametrize("length", [100, 70_000])
def test_long_and_many_rows(length: int) -> None:
    noise = torch.Generator().manual_seed(0)
    models = [torch.randn(3, length, generator=noise, dtype=torch.float64) for _ in range(2)]
    case = Case(models, torch.zeros(3, length, dtype=torch.float64))
    got = merge("cabs", *case, n=16, m=64)
    groups = -(-length // 64)
    assert int(got.ne(0).sum()) <= 3 * groups * 32
    assert int(got[:, : length // 64 * 64].ne(0).sum()) == 3 * (length // 64) * 32
    if length == 100:
        assert got.equal(reference(case, [1, 1], 16, 64))
