"""OTA merging against a plain implementation in float64, whole tensors at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from support.method_driver import merge_by_importance

DEFAULTS: dict[str, Any] = {
    "epsilon": 1e-24,
    "power": 0.5,
    "normalise": "none",
    "density": 1.0,
    "metric": "fisher",
    "precond_threshold": 0.0,
    "scaling_factor": [1.0, 1.0, 1.0],
    "rank1_approx": False,
    "rank": 0,
    "fallback_to_base": False,
    "rescale": False,
    "masked_task_vector_merge_method": "precond",
    "ties_density": 1.0,
}


def largest(values: Tensor, density: float) -> Tensor:
    """Return 1 for the int(density · n) largest elements, of equal ones the first."""
    keep = torch.zeros(values.numel(), dtype=torch.float64)
    order = sorted(range(values.numel()), key=lambda i: (-float(values.view(-1)[i]), i))
    keep[order[: int(density * values.numel())]] = 1
    return keep.view(values.shape)


def compressed(v: Tensor, rank: int, rank1: bool, name: str) -> Tensor:
    if rank and v.ndim == 2 and "embed" not in name:
        u, s, vh = torch.linalg.svd(v, full_matrices=False)
        return ((u[:, :rank] * s[:rank]) @ vh[:rank]).clamp(min=0)
    if rank1 and v.ndim == 2:
        return v.sum(1, keepdim=True) @ v.sum(0, keepdim=True) / v.sum()
    return v


def norm(x: Tensor, name: str) -> float:
    if x.ndim == 2 and "embed" in name:
        return float(x.norm(dim=0).max())
    return float(torch.linalg.matrix_norm(x, 2)) if x.ndim == 2 else float(x.norm())


def reference(
    models: list[Tensor], moments: list[Tensor], base: Tensor | None, name: str, **given: Any
) -> Tensor:
    p = DEFAULTS | given
    start = torch.zeros_like(models[0], dtype=torch.float64) if base is None else base.double()
    total, divisor, vectors = torch.zeros_like(start), torch.zeros_like(start), []
    for m, (x, raw) in enumerate(zip(models, moments, strict=True)):
        v = compressed(raw.double(), p["rank"], p["rank1_approx"], name)
        delta = x.double() - start
        score = v if base is None else v * delta**2
        mask = (score >= p["precond_threshold"]).double()
        if p["density"] < 1:
            mask *= largest(score if p["metric"] == "fisher" else delta.abs(), p["density"])
        weight = v ** p["power"] * p["scaling_factor"][m]
        if p["normalise"] == "global":
            weight = weight / (weight.mean() + p["epsilon"])
        weight = (weight + p["epsilon"]) * mask
        vector = delta if base is None else delta * mask
        if p["rescale"]:
            whole, left = norm(delta, name), norm(vector, name)
            vector = vector * (whole / left if left >= 1e-6 * whole and left else 0.0)
        vectors.append(vector)
        total, divisor = total + weight * vector, divisor + weight
    nothing = divisor <= 1.1 * len(models) * p["epsilon"]
    merged = total / torch.where(nothing, 1.0, divisor)
    method = p["masked_task_vector_merge_method"]
    if method == "linear":
        merged = sum(vectors) / len(vectors)  # type: ignore[assignment]  # a sum of tensors
    elif method == "ties":
        kept = [y * largest(y.abs(), p["ties_density"]) for y in vectors]
        sign = torch.where(sum(kept) >= 0, 1.0, -1.0)  # type: ignore[arg-type]  # likewise
        merged = sum(torch.where(y * sign > 0, y, 0.0) for y in kept) / len(kept)  # type: ignore[assignment]
    mean = torch.stack([x.double() for x in models]).mean(0) - start
    if p["fallback_to_base"] and base is not None:
        mean = torch.zeros_like(start)
    return start + torch.where(nothing, mean, merged)


CASES: list[dict[str, Any]] = [
    {},
    {"epsilon": 1e-8},
    {"power": 1.0},
    {"normalise": "global", "scaling_factor": [1.0, 2.0, 0.5]},
    {"density": 0.3},
    {"density": 0.3, "metric": "magnitude"},
    {"density": 0.1, "fallback_to_base": True},
    {"density": 0.0},
    {"precond_threshold": 2e-26},
    {"precond_threshold": 2e-26, "density": 0.5, "power": 2.0},
    {"rank1_approx": True},
    {"rank1_approx": True, "density": 0.25, "normalise": "global"},
    {"rank": 3},
    {"rank": 3, "density": 0.4},
    {"masked_task_vector_merge_method": "linear", "density": 0.4},
    {"masked_task_vector_merge_method": "ties", "density": 0.6, "ties_density": 0.5},
    {"masked_task_vector_merge_method": "ties", "ties_density": 0.3},
    {"rescale": True, "density": 0.3},
    {"rescale": True, "density": 0.3, "masked_task_vector_merge_method": "linear"},
    {
        "rescale": True,
        "density": 0.5,
        "masked_task_vector_merge_method": "ties",
        "ties_density": 0.6,
    },
]
NO_BASE = [case for case in CASES if not {*case} & {"metric", "rescale"}]
NO_BASE = [case for case in NO_BASE if "masked_task_vector_merge_method" not in case]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    noise = torch.Generator().manual_seed(len(shape))
    base = torch.randn(shape, generator=noise).to(dtype)
    models = [
        (base.float() + torch.randn(shape, generator=noise) * 0.01).to(dtype) for _ in range(3)
    ]
    moments = [torch.rand(shape, generator=noise) ** 4 * 1e-19 for _ in range(3)]
    return models, moments, base


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize(
    ("shape", "name"),
    [((24, 10), "model.layers.0.q.weight"), ((24, 10), "model.embed_tokens.weight"), ((50,), "n")],
)
def test_results_are_those_of_float64(
    values: dict[str, Any], shape: tuple[int, ...], name: str
) -> None:
    models, moments, base = inputs(shape, torch.float32)
    given = {"epsilon": 1e-24} | values
    got = merge_by_importance("ota", models, moments, base, tensor=name, block=60, **given)
    expected = reference(models, moments, base, name, **values)
    assert torch.allclose(got.double(), expected, rtol=0, atol=3e-7 * float(base.abs().max()))
    assert not got.equal(base) or values.get("fallback_to_base")


@pytest.mark.parametrize("values", NO_BASE, ids=str)
def test_without_a_base_models_are_averaged(values: dict[str, Any]) -> None:
    models, moments, _ = inputs((24, 10), torch.float32)
    given = {"epsilon": 1e-24} | values
    if "precond_threshold" in given:
        given["precond_threshold"] = values["precond_threshold"] = 2e-21
    got = merge_by_importance("ota", models, moments, tensor="w", block=60, **given)
    assert torch.allclose(
        got.double(), reference(models, moments, None, "w", **values), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("values", [{}, {"density": 0.3}, {"rank1_approx": True}], ids=str)
def test_bfloat16_is_rounded_once(values: dict[str, Any]) -> None:
    models, moments, base = inputs((64, 32), torch.bfloat16)
    given = {"epsilon": 1e-24} | values
    got = merge_by_importance("ota", models, moments, base, **given)
    expected = reference(models, moments, base, "t", **values).bfloat16()
    assert float((got == expected).double().mean()) > 0.995


def test_second_moments_of_1e_38_count() -> None:
    models = [torch.tensor([2.0, 2.0]), torch.tensor([4.0, 4.0])]
    moments = [torch.tensor([1e-38, 4e-38]), torch.tensor([9e-38, 4e-38])]
    got = merge_by_importance("ota", models, moments, torch.zeros(2), epsilon=0.0)
    assert got.tolist() == pytest.approx([3.5, 3.0], rel=1e-6)


def test_the_default_epsilon_of_ota_merge_drowns_small_moments() -> None:
    models = [torch.tensor([2.0]), torch.tensor([4.0])]
    moments = [torch.tensor([1e-20]), torch.tensor([9e-20])]
    got = merge_by_importance("ota", models, moments, torch.zeros(1))
    assert got.item() == pytest.approx(3.0, abs=0.02)
    assert merge_by_importance(
        "ota", models, moments, torch.zeros(1), epsilon=1e-24
    ).item() == pytest.approx(3.5)


def test_elements_that_no_model_keeps() -> None:
    models = [torch.tensor([2.0, 2.0]), torch.tensor([4.0, 4.0])]
    moments, base = [torch.tensor([0.0, 1e-19])] * 2, torch.tensor([1.0, 1.0])
    for fallback, expected in ((False, [3.0, 3.0]), (True, [1.0, 3.0])):
        got = merge_by_importance(
            "ota", models, moments, base, epsilon=1e-24, fallback_to_base=fallback
        )
        assert got.tolist() == expected


def test_stacked_experts_are_rescaled_one_by_one() -> None:
    models, moments, base = inputs((3, 9, 12), torch.float32)
    values = {"epsilon": 1e-24, "density": 0.4, "rescale": True, "fallback_to_base": True}
    got = merge_by_importance("ota", models[:1], moments[:1], base, tensor="experts", **values)
    for delta, change in zip((models[0] - base).double(), (got - base).double(), strict=True):
        assert not bool((change != 0).all())
        sizes = [float(torch.linalg.matrix_norm(x, 2)) for x in (delta, change)]
        assert sizes[1] == pytest.approx(sizes[0], rel=1e-4)


def test_power_iterations_are_near_the_spectral_norm() -> None:
    models, moments, base = inputs((24, 10), torch.float32)
    values = {"epsilon": 1e-24, "density": 0.4, "rescale": True}
    exact = merge_by_importance("ota", models, moments, base, **values)
    near = merge_by_importance("ota", models, moments, base, approximate_norm=True, **values)
    assert torch.allclose(near - base, exact - base, rtol=0.2, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"normalise": "mean"}, "normalise must be global or none"),
        ({"masked_task_vector_merge_method": "dare"}, "must be one of precond, linear, ties"),
        ({"metric": "v"}, "metric must be one of"),
        ({"power": 0.0}, "power must be above 0"),
        ({"epsilon": -1.0}, "epsilon must be 0 or more"),
        ({"ties_density": 2.0}, "between 0 and 1"),
        ({"rescale": True}, "rescale needs task vectors"),
        ({"masked_task_vector_merge_method": "ties"}, "needs task vectors; add base_model"),
        ({"metric": "magnitude", "density": 0.5}, "needs task vectors"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], fault: str) -> None:
    models, moments, _ = inputs((4, 4), torch.float32)
    with pytest.raises(ValueError, match=fault):
        merge_by_importance("ota", models, moments, None, **values)
