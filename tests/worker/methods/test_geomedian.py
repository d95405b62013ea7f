import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, size_of
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cost(point: Tensor, models: list[Tensor], weights: list[float]) -> float:
    return math.fsum(w * float((point - x).norm()) for w, x in zip(weights, models, strict=True))


CORNERS = [t(0, 0), t(4, 0), t(0, 4), t(4, 4)]


@pytest.mark.parametrize(
    ("models", "weight", "want"),
    [
        ([t(3, 4)], 1, [3, 4]),
        ([t(0, 2), t(4, 4)], 1, [2, 3]),
        ([t(0, 2), t(4, 4)], [1, 1.5], [4, 4]),
        # A square: where its diagonals cross, also with one corner moved away along them.
        (CORNERS, 1, [2, 2]),
        ([*CORNERS[:3], t(1e6, 1e6)], 1, [2, 2]),
        # Fermat's point of an equilateral triangle, and a corner of 120 degrees and more.
        ([t(0, 0), t(1, 0), t(0.5, 0.75**0.5)], 1, [0.5, 0.75**0.5 / 3]),
        ([t(0, 0), t(1, 0.1), t(-1, 0.1)], 1, [0, 0]),
        # On a line: the middle one; of an even number, the middle of both.
        ([t(0, 0), t(1, 1), t(10, 10)], 1, [1, 1]),
        ([t(0, 0), t(1, 1), t(3, 3), t(90, 90)], 1, [2, 2]),
        # Half of the models are one: it is the median.
        ([t(1, 2), t(1, 2), t(5, 5), t(-7, 3)], 1, [1, 2]),
        ([t(1, 2), t(5, 5), t(-7, 3)], [0, 0, 2], [-7, 3]),
        ([t(0, 0), t(0, 0)], 1, [0, 0]),
    ],
)
@pytest.mark.parametrize("shift", [None, 0.0, 1.0])
def test_by_hand(
    models: list[Tensor], weight: object, want: list[float], shift: float | None
) -> None:
    base = None if shift is None else t(shift, -shift)
    got = merge("geomedian", models, base, weight=weight)
    assert got.tolist() == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9])
def test_one_model_far_away_hardly_matters(far: float) -> None:
    noise = torch.Generator().manual_seed(0)
    near = [torch.randn(200, generator=noise, dtype=torch.float64) for _ in range(4)]
    center = torch.stack(near).mean(0)
    outlier = far * torch.randn(200, generator=noise, dtype=torch.float64)
    got = merge("geomedian", [*near, outlier], torch.zeros(200, dtype=torch.float64))
    assert float((got - center).norm()) < 1.2 * max(float((x - center).norm()) for x in near)


@given(cases(1, 5), st.sampled_from([1.0, None]), st.booleans())
def test_no_other_point_is_better(case: Case, even: float | None, with_base: bool) -> None:
    weights = [even or 0.3 + 0.4 * m for m in range(len(case.models))]
    base = case.base if with_base else None
    got = merge("geomedian", case.models, base, weight=weights, block=24)
    least = cost(got, case.models, weights)
    others = [*case.models, torch.stack(case.models).mean(0), descended(case.models, weights)]
    slack = 1e-6 * size_of(case) * max(1, case.base.numel()) ** 0.5
    for other in others:
        assert least <= cost(other, case.models, weights) * (1 + 1e-9) + slack


def descended(models: list[Tensor], weights: list[float]) -> Tensor:
    """Return the minimum by steps of Weiszfeld on the points themselves, rounded off near them."""
    point = torch.stack(models).mean(0)
    for _ in range(300):
        inverse = [
            w / max(float((point - x).norm()), 1e-12) for w, x in zip(weights, models, strict=True)
        ]
        total = sum(i * x for i, x in zip(inverse, models, strict=True))
        point = total / sum(inverse)  # type: ignore[operator]  # a tensor
    return point


@given(st.integers(0, 1000), st.integers(3, 7))
def test_order_scale_and_shift(seed: int, count: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    models = [torch.randn(6, generator=noise, dtype=torch.float64) for _ in range(count)]
    plain = merge("geomedian", models)
    turned = merge("geomedian", models[::-1])
    moved = merge("geomedian", [3 * x + 1 for x in models])
    assert torch.allclose(turned, plain, atol=1e-5)
    assert torch.allclose(moved, 3 * plain + 1, atol=1e-5)


def test_models_that_hardly_differ_from_a_large_base() -> None:
    """Differences of 1e-4 of the values: squares of them are 1e-8 of the products."""
    noise = torch.Generator().manual_seed(2)
    base = torch.randn(4000, generator=noise, dtype=torch.float64)
    models = [
        base + 1e-4 * s * torch.randn(4000, generator=noise, dtype=torch.float64)
        for s in (1, 1, 1, 30)
    ]
    with_base = merge("geomedian", models, base)
    assert torch.allclose(merge("geomedian", models), with_base, atol=1e-8)
    near = torch.stack(models[:3]).mean(0)
    mean = torch.stack(models).mean(0)
    assert float((with_base - near).norm()) < 0.2 * float((mean - near).norm())


@pytest.mark.parametrize("weight", [[1, -1], [0, 0]])
def test_weights_it_refuses(weight: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 0 or more, and not all 0"):
        merge("geomedian", [t(0, 1), t(1, 0)], weight=weight)
