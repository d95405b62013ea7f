import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from support.method_cases import Case, cases, close, size_of, weight_lists
from support.method_driver import merge

ZERO = torch.zeros(4, dtype=torch.float64)
MODELS = [torch.tensor([2.0, 2, 0, -1]).double(), torch.tensor([1.0, -1, 3, -1]).double()]
lambdas = st.sampled_from([1.0, 0.5, 0.3, 0.0, -1.0, 2.0])


def exact(case: Case, weight: list[float], scale: float, normalize: bool) -> list[Fraction]:
    """The result without any rounding."""
    total = sum(map(Fraction, weight), Fraction(0)) if normalize else Fraction(1)
    total = Fraction(1) if abs(total) < Fraction(1e-8) else total
    base = [Fraction(v) for v in case.base.flatten().tolist()]
    merged = list(base)
    for w, model in zip(weight, case.models, strict=True):
        part = Fraction(scale) * Fraction(w) / total
        merged = [
            f + part * (Fraction(v) - b)
            for f, v, b in zip(merged, model.flatten().tolist(), base, strict=True)
        ]
    return merged


def test_by_hand() -> None:
    got = merge("task_arithmetic", MODELS, ZERO, weight=[1, 3], normalize=True)
    assert got.tolist() == [1.25, -0.25, 2.25, -1]
    assert merge("task_arithmetic", MODELS, ZERO, weight=[1, -1]).tolist() == [1, 3, -3, 0]
    got = merge("task_arithmetic", MODELS, ZERO + 1, weight=[1, 1], lambda_=0.5)
    assert got.tolist() == [1.5, 0.5, 1.5, -1]
    assert merge("task_arithmetic", MODELS, ZERO, weight=[1, -1], normalize=True).tolist() == [
        1,
        3,
        -3,
        0,
    ]


def test_the_base_alone_is_copied() -> None:
    base = torch.randn(9).bfloat16()
    assert merge("task_arithmetic", [], base, weight=[]).equal(base)


@given(st.data(), cases(1, 4), lambdas, st.booleans())
def test_formula(data: st.DataObject, case: Case, scale: float, normalize: bool) -> None:
    weight = data.draw(weight_lists(len(case.models)))
    assume(not normalize or abs(sum(weight)) > 0.01 or sum(map(Fraction, weight)) == 0)
    got = merge(
        "task_arithmetic", case.models, case.base, weight=weight, lambda_=scale, normalize=normalize
    )
    merged = [float(v) for v in exact(case, weight, scale, normalize)]
    want = torch.tensor(merged, dtype=torch.float64)
    assert close(got.flatten(), want, size_of(case) * 1e3)


@given(cases(1, 4), st.sampled_from([0.5, 0.4, 0.3, 0.25, 1.0, -1.0, 1 / 3]), lambdas)
def test_bfloat16_is_the_nearest_number(case: Case, weight: float, scale: float) -> None:
    """Also where terms cancel, as long as the weights are in a plain ratio."""
    case = case.to(torch.bfloat16)
    got = merge("task_arithmetic", case.models, case.base, weight=weight, lambda_=scale)
    want = exact(case.double(), [weight] * len(case.models), scale, False)
    # Weights are decimal fractions to people: 0.4 and 0.6 make 1.
    noise = size_of(case) * 1e-14
    for g, w in zip(got.flatten().tolist(), map(float, want), strict=True):
        half = 2.0 ** (math.floor(math.log2(max(abs(w), 1e-38))) - 8)
        assert abs(g - w) <= half * (1 + 2.0**-13) + noise


def test_weights_that_make_one_leave_nothing_of_the_base() -> None:
    base = torch.full((5,), float("inf")).double()
    models = [torch.ones(5).double() for _ in range(3)]
    assert merge("task_arithmetic", models, base, weight=[0.1, 0.2, 0.7]).tolist() == pytest.approx(
        [1.0] * 5
    )


def test_a_slice_without_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match="requires a base"):
        merge("task_arithmetic", MODELS, weight=[1, 1])
