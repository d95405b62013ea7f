import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker.errors import ResultError
from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reference(deltas: list[Tensor], weight: list[float], eps: float = 1e-8) -> Tensor:
    """The procedure step by step, its tangential part included."""
    if len(deltas) == 1:
        return deltas[0]
    w = [x / sum(weight) for x in weight]
    lengths = [float(d.norm()) for d in deltas]
    units = [d / (n + eps) for d, n in zip(deltas, lengths, strict=True)]
    mean = sum(x * u for x, u in zip(w, units, strict=True))
    assert isinstance(mean, Tensor)
    size = float(mean.norm())
    assume(size < eps * 0.1 or size > 1e-5)
    if size < eps:
        assume(len(deltas) == 2)
        return w[0] * deltas[0] + w[1] * deltas[1]
    mean = mean / size
    tangent = sum(x * (u - (u * mean).sum() * mean) for x, u in zip(w, units, strict=True))
    assert isinstance(tangent, Tensor)
    q = tangent.norm() + eps
    total = sum(x * n for x, n in zip(w, lengths, strict=True))
    return (torch.cos(q) * mean + torch.sin(q) / q * tangent) * total


def test_by_hand() -> None:
    models = [t(2, 0), t(0, 4)]
    got = merge("multislerp", models, weight=[1, 3])
    assert got.tolist() == pytest.approx([1.106797, 3.320392], abs=1e-6)
    got = merge("multislerp", models, weight=[1, 3], normalize_weights=False)
    assert got.tolist() == pytest.approx([4.427189, 13.281566], abs=1e-6)
    got = merge("multislerp", [t(3, 1), t(1, 5)], t(1, 1), weight=[1, 1])
    assert got.tolist() == pytest.approx([3.121320, 3.121320], abs=1e-6)


@given(st.data(), cases(1, 4), st.booleans())
def test_formula(data: st.DataObject, case: Case, based: bool) -> None:
    weight = data.draw(weight_lists(len(case.models)))
    assume(abs(sum(weight)) > 0.01)
    base = case.base if based else torch.zeros_like(case.base)
    want = base + reference([x - base for x in case.models], weight)
    got = merge("multislerp", case.models, base if based else None, weight=weight, block=64)
    assert close(got, want, size_of(case) * 1e3, 1e-9)


@given(cases(2, 3, ["random", "near", "same"]))
def test_bfloat16_is_rounded_once(case: Case) -> None:
    case = case.to(torch.bfloat16)
    exact = case.double()
    weight = [1.0, 0.6, 0.7][: len(case.models)]
    want = exact.base + reference([x - exact.base for x in exact.models], weight)
    got = merge("multislerp", case.models, case.base, weight=weight)
    assert within_half_an_ulp(got, want, size_of(case) * 100)


def test_directions_that_cancel() -> None:
    got = merge("multislerp", [t(1, 0), t(-3, 0)], weight=[1, 1])
    assert got.tolist() == [-1, 0]
    with pytest.raises(ResultError, match="tensor 't': multislerp: the directions"):
        merge("multislerp", [t(1, 0), t(-0.5, 0.75**0.5), t(-0.5, -(0.75**0.5))], weight=[1, 1, 1])


def test_weights_that_add_up_to_zero_are_refused() -> None:
    with pytest.raises(ZeroDivisionError, match="add up to 0"):
        merge("multislerp", [t(1, 0), t(0, 1)], weight=[1, -1])


def test_one_model_is_copied() -> None:
    x, base = torch.randn(2, 9).bfloat16()
    assert merge("multislerp", [x], base, weight=[0.3]).equal(x)


OUT = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_opposite_numbers_are_those_of_the_formula_in_any_dtype(
    dtype: torch.dtype, out: torch.dtype
) -> None:
    """The mean of two directions is of the size of eps, below the rounding of products."""
    noise = torch.Generator().manual_seed(0)
    for scale in (1.0, 0.02, 1e-3):
        for _ in range(50):
            x, y = (torch.rand(2, 1, generator=noise).add_(0.01) * scale).to(dtype)
            got = merge("multislerp", [x, -y], dtype=out, weight=[1, 1]).double()
            a, b = float(x), float(y)
            mean = 0.5 * (a / (a + 1e-8) - b / (b + 1e-8))
            summed = (a - b) / 2 if abs(mean) < 1e-8 else (a + b) / 2 * (1 if mean > 0 else -1)
            if 0.99 < abs(mean) / 1e-8 < 1.01:
                continue
            assert got.tolist() == pytest.approx([summed], rel=0.01, abs=1e-9)


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_three_directions_that_cancel_are_an_error_in_any_dtype(
    dtype: torch.dtype, out: torch.dtype
) -> None:
    x, y = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = [x.to(dtype), y.to(dtype)]
    third = -(models[0].double() / models[0].double().norm())
    third -= models[1].double() / models[1].double().norm()
    models.append(third.to(dtype))
    weight = [1.0, 1.0, float(third.norm())]
    if dtype == torch.float64:
        with pytest.raises(ResultError, match="the directions"):
            merge("multislerp", models, block=256, dtype=out, weight=weight)
    else:  # what rounding of the third model leaves is a direction, the same in every dtype
        got, exact = (merge("multislerp", models, dtype=d, weight=weight) for d in (out, OUT[-1]))
        assert torch.allclose(got.double(), exact, rtol=0.01, atol=0.05)


def test_an_eps_of_zero_is_the_formula_without_it() -> None:
    got = merge("multislerp", [t(2, 0), t(0, 0)], weight=[1, 1], eps=0.0)
    assert got.tolist() == pytest.approx([1, 0])
    with pytest.raises(ValueError, match="eps must be 0 or more"):
        merge("multislerp", [t(1, 0), t(0, 1)], weight=[1, 1], eps=-1.0)
