"""Numbers of a recipe at the ends of what YAML can hold: a result, or words, never an overflow."""

from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker import methods
from merge_worker.errors import ResultError
from merge_worker.method import BaseRole, Method
from merge_worker.recipe.schedules import schedule_weights
from support.method_driver import merge, models_of, values_of

LARGEST = 1.7e308
EXTREMES = [0.0, 5e-324, 1e-300, 1e-39, 1e-12, 1e12, 1e39, 1e300, LARGEST]
METHODS = [methods.get(name) for name in methods.names()]
OF_PYTHON = ("division by zero", "domain error", "overflow", "infinity")


def models_for(method: Method, dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None]:
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(8, 30, generator=noise) * 0.02
    models = [base + torch.randn(8, 30, generator=noise) * 4e-3 for _ in range(models_of(method))]
    models[0][:2] = base[:2]
    own = None if method.base is BaseRole.IGNORED else base.to(dtype)
    return [x.to(dtype) for x in models], own


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_number_of_a_recipe_crashes_a_method(method: Method, dtype: torch.dtype) -> None:
    models, base = models_for(method, dtype)
    for parameter in method.parameters:
        for extreme in EXTREMES if parameter.type is float else []:
            for value in (extreme, -extreme):
                for given in _lists(method, parameter.name, value, len(models)):
                    values: dict[str, Any] = values_of(method, len(models)) | given
                    try:
                        got = merge(method.name, models, base, **values)
                    except (ValueError, ZeroDivisionError, ResultError) as error:
                        said = str(error)
                        assert not any(words in said for words in OF_PYTHON), (given, said)
                    else:
                        assert extreme > 1e30 or bool(got.isfinite().all()), given


def _lists(method: Method, name: str, value: float, count: int) -> list[dict[str, Any]]:
    """The value as that of all models, of the first one and of the last one."""
    parameter = next(p for p in method.parameters if p.name == name)
    key = "lambda_" if name == "lambda" else name
    if not parameter.per_model:
        return [{key: value}]
    usual = values_of(method, count).get(name, parameter.default)
    each = list(usual) if isinstance(usual, list) else [usual] * count
    return [{key: [value] * count}, {key: [value, *each[1:]]}, {key: [*each[:-1], value]}]


@pytest.mark.parametrize("unit", [1e-300, 1e-39, 1e-4, 1e39, 1e300])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("linear", {}),
        ("multislerp", {}),
        ("ties", {"density": 0.5}),
        ("ties", {"density": 0.5, "rescale": True}),
        ("della", {"density": 0.5}),
        ("dare_ties", {"density": 0.5, "normalize": True}),
        ("breadcrumbs_ties", {"density": 0.5, "normalize": True}),
        ("consensus_ties", {"normalize": True}),
    ],
)
def test_the_unit_of_weights_that_are_divided_out_is_free(
    name: str, more: dict[str, Any], unit: float
) -> None:
    models, base = models_for(methods.get(name), torch.float32)
    weights = [0.3, 0.7, 0.2][: len(models)]
    one = merge(name, models, base, weight=weights, **more)
    other = merge(name, models, base, weight=[w * unit for w in weights], **more)
    assert torch.allclose(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", [(1e-39, 1.0), (1.0, 1e-39), (1e-300, 1e300), (1.0, 5e-324)])
@pytest.mark.parametrize("name", ["ties", "dare_ties", "breadcrumbs_ties", "della"])
def test_a_model_that_is_alone_counts_in_full(
    name: str, weights: tuple[float, float], dtype: torch.dtype
) -> None:
    """Whatever its share: the divisor is its own weight."""
    base = torch.zeros(4, dtype=dtype)
    models = [t.to(dtype) for t in torch.tensor([[2.0, -3, 0, 0], [0.0, 0, 5, -7]])]
    got = merge(name, models, base, weight=list(weights), normalize=True)
    assert got.tolist() == pytest.approx([2, -3, 5, -7], rel=1e-15)


def test_weights_that_cancel_are_divided_by_one_in_their_own_unit() -> None:
    delta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    got = merge("ties", [delta, -delta], torch.zeros_like(delta), weight=[3e-39, -3e-39])
    assert got.tolist() == pytest.approx([6e-39, 12e-39], rel=1e-12)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "della", "linear"])
def test_a_steep_schedule_of_many_checkpoints(name: str) -> None:
    weights = schedule_weights("ema:0.001", 14)
    assert weights[0] < 1e-38
    base = torch.zeros(50)
    models = list(torch.randn(14, 50, generator=torch.Generator().manual_seed(0)).bfloat16())
    more: dict[str, Any] = {} if name == "linear" else {"base": base.bfloat16()}
    got = merge(name, models, weight=list(weights), **more)
    assert torch.allclose(got.float(), models[-1].float(), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "consensus_ta"])
def test_elements_without_change_are_the_base_under_any_factor(name: str) -> None:
    base = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    for factor in (1e6, 1e39, 1e300):
        got = merge(name, [base.clone()] * 2, base, weight=[1.0, 0.3], lambda_=factor)
        assert got.equal(base)
