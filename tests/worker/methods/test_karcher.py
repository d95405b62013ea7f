import math

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from merge_worker.methods import karcher
from support.method_cases import Case, cases, close, size_of, within_half_an_ulp
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reference(models: list[Tensor], max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """The iteration on the sphere itself; a unit opposite to the mean gives no direction."""
    lengths = [float(x.norm()) for x in models]
    units = [x / n for x, n in zip(models, lengths, strict=True) if n > tol]
    if not units:
        return torch.zeros_like(models[0])
    a = 1 / len(units)
    mean = torch.stack(units).mean(0)
    assume(not 1e-9 < float(mean.norm()) < 1e-3)
    mean = units[0] if mean.norm() < tol else mean / mean.norm()
    for _ in range(max_iter):
        step = torch.zeros_like(mean)
        for unit in units:
            c = float((mean * unit).sum().clamp(-1, 1))
            angle = math.acos(c)
            assume(not 0.99 * karcher.OPPOSITE < math.pi - angle < 0.01)
            if tol <= angle < math.pi - karcher.OPPOSITE:
                step += a * angle / math.sin(angle) * (unit - c * mean)
        size = float(step.norm())
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / mean.norm()
    return mean * sum(lengths) / len(lengths)


@pytest.mark.parametrize(
    ("models", "want"),
    [
        ([t(1, 0, 0), t(0, 1, 0), t(0, 0, 2)], [0.769800] * 3),
        ([t(1, 0, 0), t(0, 1, 0), t(1, 1, 0)], [0.804738, 0.804738, 0]),
        ([t(2, 0), t(0, 0)], [1, 0]),
        ([t(1, 0), t(-1, 0)], [1, 0]),
        ([t(1e-6, 0), t(0, 1e-6)], [0, 0]),
    ],
)
def test_by_hand(models: list[Tensor], want: list[float]) -> None:
    assert merge("karcher", models).tolist() == pytest.approx(want, abs=1e-6)


@given(cases(1, 4))
def test_formula(case: Case) -> None:
    got = merge("karcher", case.models, block=64)
    # A step more or less, where one is as short as the tolerance.
    assert close(got, reference(case.models), size_of(case) * math.sqrt(got.numel() + 1), 1e-5)


@given(cases(2, 3, ["random", "near", "same"]))
def test_bfloat16_is_rounded_once(case: Case) -> None:
    case = case.to(torch.bfloat16)
    want = reference(case.double().models)
    got = merge("karcher", case.models)
    assert within_half_an_ulp(got, want, size_of(case) * 300)


def test_it_is_the_mean_of_squared_angles() -> None:
    models = list(torch.randn(4, 50, dtype=torch.float64) + 0.5)
    mean = merge("karcher", models, max_iter=200, tol=1e-9)

    def cost(at: Tensor) -> float:
        return sum(float(torch.cosine_similarity(at, x, 0).acos()) ** 2 for x in models)

    least = cost(mean)
    for _ in range(20):
        assert cost(mean + 0.01 * torch.randn(50, dtype=torch.float64)) > least


def test_no_steps_give_the_mean_direction() -> None:
    got = merge("karcher", [t(1, 0), t(0, 3)], max_iter=0)
    assert got.tolist() == pytest.approx([2 * 0.5**0.5, 2 * 0.5**0.5])


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (700,)])
def test_opposite_models_are_found_in_any_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, out: torch.dtype
) -> None:
    """The cosine of their rounded products may be above -1 by more than the tolerance allows."""
    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        first = torch.randn(shape, generator=noise).to(dtype)
        factors = [-2, 0.5, -1] if dtype == torch.bfloat16 else [-1.7, 0.3, -0.9]
        models = [first, *(first * factor for factor in factors)]
        got = merge("karcher", models, block=64, dtype=out).double()
        mean = sum(float(x.double().norm()) for x in models) / 4
        want = first.double() / first.double().norm() * mean
        assert torch.allclose(got, want, rtol=0.01, atol=1e-3 * mean)


def test_a_model_opposite_to_the_mean_of_others_is_found_in_any_dtype() -> None:
    noise = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 500, generator=noise)
    second = first + 0.2 * second
    opposite = -(first / first.norm() + second / second.norm())
    models = [first, second, opposite]
    exact = merge("karcher", models, dtype=torch.float64)
    assert torch.allclose(merge("karcher", models, dtype=torch.float16).double(), exact, atol=2e-3)


def test_a_tolerance_of_zero_ends_where_no_step_is_left() -> None:
    assert merge("karcher", [t(1, 0), t(1, 0)], tol=0.0).tolist() == [1, 0]
    with pytest.raises(ValueError, match="tol must be 0 or more"):
        merge("karcher", [t(1, 0), t(0, 1)], tol=-1.0)
