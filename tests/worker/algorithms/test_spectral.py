"""Polar factors by products and by eigenvectors: the same, and each where it is fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker.algorithms.spectral import newton_schulz, polar, spectrum


def with_singular_values(rows: int, values: list[float], seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    columns = len(values)
    left = torch.linalg.qr(torch.randn(rows, columns, generator=noise).double())[0]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=noise).double())[0]
    product: Tensor = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right
    return product


def by_svd(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    product: Tensor = u @ v
    return product


sizes = st.lists(st.floats(1e-2, 1e3), min_size=1, max_size=12)


@given(sizes, st.integers(0, 9), st.sampled_from([1e-6, 1.0, 1e6]))
def test_both_find_the_polar_factor(values: list[float], more: int, scale: float) -> None:
    matrix = with_singular_values(len(values) + more, values) * scale
    want, condition = by_svd(matrix), max(values) / min(values)
    assert torch.allclose(polar(matrix), want, atol=1e-14 * condition**2)
    factor = newton_schulz(matrix, steps=60)
    if condition < 1e4:
        assert factor is not None
    if factor is not None:
        assert torch.allclose(factor, want, atol=1e-12 * condition)


@given(sizes)
def test_singular_values(values: list[float]) -> None:
    matrix = with_singular_values(len(values) + 2, values)
    known = spectrum(matrix)
    want = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    assert torch.allclose(known.values**2, want**2, rtol=1e-13, atol=1e-14 * max(values) ** 2)
    right = known.right
    assert torch.allclose(right.mT @ right, torch.eye(len(values)).double(), atol=1e-12)


def test_float32_products_end_orthogonal() -> None:
    noise = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 200, generator=noise)
    factor = newton_schulz(matrix)
    assert factor is not None
    assert (factor.mT @ factor - torch.eye(200)).abs().max() < 1e-5
    assert torch.allclose(factor.double(), by_svd(matrix), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smallest", [0.0, 1e-12])
def test_products_give_up_on_low_rank(dtype: torch.dtype, smallest: float) -> None:
    matrix = with_singular_values(20, [3.0, 2.0, 1.0] + [smallest] * 7).to(dtype)
    assert newton_schulz(matrix) is None
    assert newton_schulz(torch.zeros(4, 3, dtype=dtype)) is None


def test_eigenvectors_leave_out_what_is_zero() -> None:
    matrix = with_singular_values(20, [3.0, 2.0, 1.0] + [0.0] * 7)
    factor = polar(matrix)
    assert torch.linalg.svdvals(factor).round(decimals=10).tolist() == [1.0] * 3 + [0.0] * 7
    assert len(spectrum(torch.zeros(4, 3).double()).values) == 0
    assert not polar(torch.zeros(4, 3).double()).any()
