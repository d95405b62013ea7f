import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from support.method_cases import Case, cases
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def importance(x: Tensor, base: Tensor) -> Tensor:
    rows = x.shape[-1] if x.dim() else 1
    p, q = (v.reshape(-1, rows).softmax(-1) + 1e-8 for v in (x, base))
    kl = (p * (p / q).log()).sum(-1, keepdim=True)
    return ((x - base).abs().reshape(-1, rows) * kl.clamp(min=0)).reshape(x.shape)


def threshold(values: Tensor) -> float:
    ordered = values.flatten().sort().values.tolist()
    lower, median, upper = (ordered[math.floor(f * (len(ordered) - 1))] for f in (0.25, 0.5, 0.75))
    return median + 1.5 * (upper - lower)


def agrees(got: Tensor, x: Tensor, base: Tensor, tolerance: float) -> bool:
    """Every element is the right model's, or so near the threshold that rounding decides."""
    values = importance(x.double(), base.double())
    limit = threshold(values)
    want = torch.where(values >= limit, x, base)
    edge = (values - limit).abs() <= tolerance * (abs(limit) + float(values.max()) * 1e-3)
    return bool(((got == want) | edge & ((got == x) | (got == base))).all())


def test_by_hand() -> None:
    x = t(0.1, 0.2, 0.1, 0.1, 5)
    assert merge("arcee_fusion", [x], torch.zeros_like(x)).tolist() == [0, 0, 0, 0, 5]


@given(cases(1, 1))
def test_formula(case: Case) -> None:
    (x,), base = case
    got = merge("arcee_fusion", [x], base, block=24)
    assert got.equal(base) if not base.numel() else agrees(got, x, base, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exact_quartiles_of_more_than_a_million_elements(dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)
    base = (torch.randn(1100, 1000, generator=noise) * 0.02).to(dtype)
    x = (base + torch.randn(1100, 1000, generator=noise) * 1e-3).to(dtype)
    got = merge("arcee_fusion", [x], base)
    assert agrees(got, x, base, 1e-5)
    chosen = importance(x.double(), base.double())
    expected = int((chosen >= threshold(chosen)).sum())
    assert abs(int((got != base).sum()) - expected) <= 1e-4 * expected + 1


def test_equal_importance_takes_the_other_model() -> None:
    x, base = torch.randn(2, 30, 1)
    assert merge("arcee_fusion", [x], base).equal(x)  # rows of one element do not diverge


def test_the_dtype_is_that_of_the_base() -> None:
    x, base = torch.randn(2, 4, 5).half()
    assert merge("arcee_fusion", [x], base).dtype == torch.float16


@pytest.mark.parametrize("place", [0, 1])
def test_nan_is_not_left_out(place: int) -> None:
    pair = [torch.randn(6, 5), torch.randn(6, 5)]
    pair[place][2, 3] = float("nan")
    got = merge("arcee_fusion", pair[:1], pair[1])
    assert got[2].isnan().all()
    assert got.isnan().sum() == 5


def test_a_source_alone_is_copied() -> None:
    x = torch.randn(9).bfloat16()
    assert merge("arcee_fusion", [], x).equal(x)
    assert merge("arcee_fusion", [x]).equal(x)
