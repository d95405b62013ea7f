import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, within_half_an_ulp
from support.method_driver import merge

ts = st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0, 1.5, -0.3, 0.123456])


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cosine(x: Tensor, base: Tensor) -> float:
    lengths = [float(v.norm()) if float(v.norm()) > 1e-8 else 1.0 for v in (x, base)]
    return max(-1.0, min(1.0, float((x * base).sum()) / math.prod(lengths)))


def reference(x: Tensor, base: Tensor, part: float) -> Tensor:
    d = cosine(x, base)
    if abs(d) > 0.9995:
        return (1 - part) * base + part * x
    angle = math.acos(d)
    return (math.sin((1 - part) * angle) * base + math.sin(part * angle) * x) / math.sin(angle)


@pytest.mark.parametrize(
    ("base", "other", "part", "want"),
    [
        (t(1, 0), t(0, 1), 0.25, [0.923880, 0.382683]),
        (t(0, 1), t(1, 0), 0.25, [0.382683, 0.923880]),
        (t(2, 0), t(0, 4), 0.5, [1.414214, 2.828427]),
        (t(2, 0), t(0, 4), 0.75, [0.765367, 3.695518]),
        (t(1, 0), t(-1, 0), 0.25, [0.5, 0]),
        (t(0, 0), t(1, 0), 0.5, [0.707107, 0]),
        (t(1, 0), t(0, 1), 1.5, [-0.707107, 0.707107]),
    ],
)
def test_by_hand(base: Tensor, other: Tensor, part: float, want: list[float]) -> None:
    assert merge("slerp", [other], base, t=part).tolist() == pytest.approx(want, abs=1e-6)


@given(cases(1, 1), ts)
def test_formula(case: Case, part: float) -> None:
    (x,), base = case
    assume(abs(abs(cosine(x, base)) - 0.9995) > 1e-9)
    got = merge("slerp", [x], base, t=part, block=64)
    assert close(got, reference(x, base, part), size_of(case) * 50)


@given(cases(1, 1, ["random", "near", "same", "zero"]), ts)
def test_bfloat16_is_rounded_once(case: Case, part: float) -> None:
    case = case.to(torch.bfloat16)
    (x,), base = case.double()
    assume(abs(abs(cosine(x, base)) - 0.9995) > 1e-6)
    got = merge("slerp", case.models, case.base, t=part)
    assert within_half_an_ulp(got, reference(x, base, part), size_of(case) * 50)


def test_ends_are_bit_copies() -> None:
    base, x = torch.randn(2, 500).bfloat16()
    assert merge("slerp", [x], base, t=0.0).equal(base)
    assert merge("slerp", [x], base, t=1.0).equal(x)


def test_a_source_alone_is_copied() -> None:
    x = torch.randn(9).bfloat16()
    assert merge("slerp", [x], t=0.3).equal(x)
    assert merge("slerp", [], x, t=0.3).equal(x)


def test_two_models_without_base_are_refused() -> None:
    with pytest.raises(ValueError, match="requires a base"):
        merge("slerp", [t(1), t(2)], t=0.3)
