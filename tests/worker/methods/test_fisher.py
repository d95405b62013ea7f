"""Averages by importance: hand cases, float64 references, and what happens at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_worker.algorithms.importance_average import Average, multiply
from support.method_driver import merge_by_importance

PLAIN = {"normalize": "none", "floor": 0.0}


def t(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def reference(
    models: list[Tensor],
    importance: list[Tensor],
    weight: list[float],
    normalize: str = "none",
    floor: float = 0.0,
    power: float = 1.0,
) -> Tensor:
    norms = [float(f.double().norm()) if normalize != "none" else 1.0 for f in importance]
    scaled = [f.double() / n for f, n in zip(importance, norms, strict=True)]
    epsilon = floor * float(torch.stack(scaled).mean())
    weights = [w * (f + epsilon) ** power for w, f in zip(weight, scaled, strict=True)]
    total = sum(w * x.double() for w, x in zip(weights, models, strict=True))
    return total / sum(weights)  # type: ignore[return-value]  # a sum of tensors


def test_the_case_by_hand() -> None:
    got = merge_by_importance("fisher", [t(2), t(4)], [t(1), t(3)], **PLAIN)
    assert got.tolist() == [3.5]
    with_base = merge_by_importance("fisher", [t(2), t(4)], [t(1), t(3)], t(10), **PLAIN)
    assert with_base.tolist() == [3.5]
    scaled = merge_by_importance("fisher", [t(2), t(4)], [t(1), t(3)], t(1), lambda_=2.0, **PLAIN)
    assert scaled.tolist() == [6.0]  # 1 + 2 · 2.5


def test_weights_multiply_the_importance() -> None:
    models, importance = [t(2), t(4)], [t(1), t(3)]
    got = merge_by_importance("fisher", models, importance, weight=[3, 1], **PLAIN)
    assert got.tolist() == [3.0]
    alone = merge_by_importance("fisher", models, importance, weight=[0, 1], **PLAIN)
    assert alone.tolist() == [4.0]


def test_importance_of_the_base_holds_on_to_it() -> None:
    models, base = [t(2, 2), t(4, 4)], t(0, 0)
    importance = [t(1, 1), t(3, 3), t(4, 0)]
    got = merge_by_importance("fisher", models, importance, base, **PLAIN)
    assert got.tolist() == [14 / 8, 3.5]
    half = merge_by_importance("fisher", models, importance, base, base_weight=0.5, **PLAIN)
    assert half[0] == pytest.approx(14 / 6)


@pytest.mark.parametrize("size", [1e-19, 1e-30, 1e-38, 1e-43, 1e30])
@pytest.mark.parametrize("normalize", ["model", "tensor", "none"])
def test_importance_of_any_size_tells_models_apart(size: float, normalize: str) -> None:
    share = t(0.25, 0.5, 1.0, 0.0)
    first, second = (share * size).clone(), (share.flip(0) * size).clone()
    models = [t(1, 1, 1, 1), t(3, 3, 3, 3)]
    got = merge_by_importance("fisher", models, [first, second], normalize=normalize, floor=0)
    wide = [f.double() / float(f.double().norm()) for f in (first, second)]
    expected = (wide[0] * 1 + wide[1] * 3) / (wide[0] + wide[1])
    assert torch.allclose(got.double(), expected, rtol=1e-6)
    assert float(got.max() - got.min()) > 1.9


def test_a_relative_floor_does_not_drown_small_importance() -> None:
    got = merge_by_importance("fisher", [t(2), t(4)], [t(1e-19), t(3e-19)], normalize="none")
    assert float(got) == pytest.approx(3.5, rel=1e-6)


def test_no_importance_is_the_mean_by_weights() -> None:
    models, zero = [t(2, 8), t(4, 8)], t(0, 0)
    for importance in ([zero, zero], [None, None], [zero, t(0, 1)]):
        got = merge_by_importance("fisher", models, importance, weight=[3, 1], **PLAIN)
        assert got.tolist() == [2.5, 8.0]
    based = merge_by_importance("fisher", models, [zero, zero], t(1, 1), weight=[3, 1], lambda_=2)
    assert based.tolist() == [4.0, 15.0]


def test_a_tensor_without_importance_counts_nothing_for_its_model() -> None:
    got = merge_by_importance("fisher", [t(2, 2), t(4, 4)], [None, t(1, 2)], **PLAIN)
    assert got.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_base", [False, True])
def test_equal_models_are_the_result(dtype: torch.dtype, with_base: bool) -> None:
    noise = torch.Generator().manual_seed(1)
    model = torch.randn(5000, generator=noise).to(dtype)
    importance = [torch.rand(5000, generator=noise) for _ in range(3)]
    base = (model * 0.9).to(dtype) if with_base else None
    got = merge_by_importance("fisher", [model.clone() for _ in range(3)], importance, base)
    if dtype == torch.float64 and with_base:
        assert torch.allclose(got, model, rtol=4e-16, atol=0)
    else:
        assert got.equal(model)


@given(
    st.lists(st.floats(0.015625, 64, width=32), min_size=2, max_size=4),
    st.sampled_from(["model", "tensor", "none"]),
    st.sampled_from([0.0, 1e-6, 1e-2]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(0, 1 << 16),
)
@settings(max_examples=40, deadline=None)
def test_results_are_those_of_float64(
    weight: list[float], normalize: str, floor: float, power: float, seed: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    models = [torch.randn(60, generator=noise) for _ in weight]
    importance = [torch.rand(60, generator=noise) * 1e-17 + 1e-21 for _ in weight]
    values = {"normalize": normalize, "floor": floor, "power": power}
    got = merge_by_importance("fisher", models, importance, weight=weight, block=7, **values)
    expected = reference(models, importance, weight, normalize, floor, power)
    assert torch.allclose(got.double(), expected, rtol=2e-6, atol=1e-6)
    stacked = torch.stack(models)
    assert bool((got >= stacked.min(0).values - 1e-6).all())
    assert bool((got <= stacked.max(0).values + 1e-6).all())


def test_bfloat16_is_rounded_once() -> None:
    noise = torch.Generator().manual_seed(4)
    models = [torch.randn(4096, generator=noise).bfloat16() for _ in range(3)]
    importance = [torch.rand(4096, generator=noise) * 1e-12 for _ in range(3)]
    got = merge_by_importance("fisher", models, importance, **PLAIN)
    expected = reference(models, importance, [1, 1, 1])
    assert float((got == expected.bfloat16()).double().mean()) > 0.999


def test_a_large_power_leaves_no_hole() -> None:
    models, importance = [t(2, 2), t(4, 4)], [t(1e-20, 1), t(3e-20, 1)]
    got = merge_by_importance("fisher", models, importance, normalize="none", power=8)
    assert got.tolist() == pytest.approx([3.0, 3.0], rel=1e-6)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"normalize": "sum"}, "normalize must be one of"),
        ({"weight": -1.0}, "0 or more"),
        ({"weight": 0.0}, "add up to 0"),
        ({"power": 0.0}, "power must be above 0"),
        ({"floor": -1e-6}, "floor must be 0 or more"),
        ({"lambda_": 0.5}, "add base_model"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        merge_by_importance("fisher", [t(2), t(4)], [t(1), t(3)], **values)


def test_products_beyond_float32() -> None:
    tiny = torch.tensor([1e-44])
    assert float(multiply(tiny.clone(), 1 / 1e-44)) == pytest.approx(float(tiny) / 1e-44)
    assert math.isfinite(Average([1.0]).floor)
