import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, within_half_an_ulp
from support.method_driver import merge

ts = st.sampled_from([0.0, 1e-7, 1e-4, 1e-3, 0.02, 1.0, -0.5])


def reference(x: Tensor, base: Tensor, t: float) -> Tensor:
    w = (t / (x - base).abs().clamp(min=1e-6)).clamp(0, 1)
    return w * x + (1 - w) * base


def test_by_hand() -> None:
    x = torch.tensor([0.1, 0.5, 1, -2], dtype=torch.float64)
    got = merge("nearswap", [x], torch.zeros_like(x), t=0.5)
    assert torch.allclose(got, torch.tensor([0.1, 0.5, 0.5, -0.5]).double())


@given(cases(1, 1), ts)
def test_formula(case: Case, t: float) -> None:
    (x,), base = case
    assert close(merge("nearswap", [x], base, t=t, block=64), reference(x, base, t), size_of(case))


@given(cases(1, 1), ts)
def test_bfloat16_is_rounded_once(case: Case, t: float) -> None:
    case = case.to(torch.bfloat16)
    (x,), base = case.double()
    got = merge("nearswap", case.models, case.base, t=t)
    assert within_half_an_ulp(got, reference(x, base, t), size_of(case))


def test_near_elements_are_taken_bit_by_bit() -> None:
    base = torch.randn(500).bfloat16()
    x = base + 0.01 * torch.randn(500).bfloat16()
    assert merge("nearswap", [x], base, t=1.0).equal(x)
    assert merge("nearswap", [x], base, t=0.0).equal(base)


def test_a_source_alone_is_copied() -> None:
    x = torch.randn(9).bfloat16()
    assert merge("nearswap", [], x, t=0.3).equal(x)
    assert merge("nearswap", [x], t=0.3).equal(x)
