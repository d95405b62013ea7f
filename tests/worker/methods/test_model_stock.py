import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, within_half_an_ulp
from support.method_driver import merge

HIGH = math.sqrt(0.75)


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio(deltas: list[Tensor]) -> float:
    k = len(deltas)
    cosines = [
        max(-1.0, min(1.0, float((x * y).sum()) / max(float(x.norm() * y.norm()), 1e-6)))
        for i, x in enumerate(deltas)
        for y in deltas[i + 1 :]
    ]
    c = sum(cosines) / len(cosines)
    below = 1 + (k - 1) * c
    assume(abs(below) < 1e-9 or abs(below) > 1e-2)
    return 0.0 if abs(below) < 1e-6 else k * c / below


def reference(case: Case, filter_wise: bool) -> Tensor:
    if not case.base.numel():
        return case.base
    mean = torch.stack(case.models).mean(0)
    if not filter_wise or case.base.dim() < 2:
        part = ratio([x - case.base for x in case.models])
        return part * mean + (1 - part) * case.base
    length = case.base.shape[-1]
    rows = zip(*((x - case.base).view(-1, length) for x in case.models), strict=True)
    parts = t(*(ratio(list(row)) for row in rows)).view(*case.base.shape[:-1], 1)
    return parts * mean + (1 - parts) * case.base


@pytest.mark.parametrize(
    ("models", "want"),
    [
        ([t(1, 0), t(0.5, HIGH)], [0.5, 0.288675]),
        ([t(1, 0), t(-0.5, HIGH)], [-0.5, -0.866025]),
        ([t(1, 0), t(-1, 0)], [0, 0]),
        ([t(1, 0, 0), t(0.5, HIGH, 0), t(0.5, 0, HIGH)], [0.454545, 0.196824, 0.196824]),
        ([t(1e-4, 0), t(1e-4, 0)], [1.980198e-6, 0]),
    ],
)
def test_by_hand(models: list[Tensor], want: list[float]) -> None:
    got = merge("model_stock", models, torch.zeros_like(models[0]))
    assert got.tolist() == pytest.approx(want, abs=1e-6, rel=1e-6)


def test_filter_wise_by_hand() -> None:
    models = [t(1, 0, 1, 1).view(2, 2), t(0, 1, 1, 1).view(2, 2)]
    base = torch.zeros_like(models[0])
    rows = merge("model_stock", models, base, filter_wise=True).flatten().tolist()
    # The last digit of a root of float64 is the processor's.
    assert rows == pytest.approx([0, 0, 1, 1], abs=1e-15, rel=1e-15)
    whole = merge("model_stock", models, base).flatten().tolist()
    assert whole == pytest.approx([0.4, 0.4, 0.8, 0.8])


@given(cases(2, 4), st.booleans())
def test_formula(case: Case, filter_wise: bool) -> None:
    got = merge("model_stock", case.models, case.base, filter_wise=filter_wise, block=24)
    assert close(got, reference(case, filter_wise), size_of(case) * 1e4)


@given(cases(2, 3, ["random", "near", "same", "double"]), st.booleans())
def test_bfloat16_is_rounded_once(case: Case, filter_wise: bool) -> None:
    case = case.to(torch.bfloat16)
    got = merge("model_stock", case.models, case.base, filter_wise=filter_wise)
    want = reference(case.double(), filter_wise)
    # What is lost when the models nearly cancel is lost in the inputs already.
    assert within_half_an_ulp(got, want, size_of(case) * 400)


def test_models_like_the_base_are_the_base() -> None:
    base = torch.randn(6, 7).bfloat16()
    for filter_wise in (False, True):
        got = merge("model_stock", [base.clone()] * 3, base, filter_wise=filter_wise)
        assert got.equal(base)


def test_one_model_beside_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 models beside the base"):
        merge("model_stock", [t(1)], t(2))
