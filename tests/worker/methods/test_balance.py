"""Balanced task vectors: as a modifier of every method with a base, and in nde."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from torch import Tensor

from merge_worker import methods
from merge_worker.errors import UsageError
from merge_worker.method import BaseRole
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.method_cases import Case, cases, close, size_of
from support.method_driver import make_task, merge, models_of, run, values_of
from support.recipes import run as worker
from support.reference_formulas import kept_by_chance, rescaled

BALANCED = [
    name
    for name in methods.names()
    if methods.get(name).base is not BaseRole.IGNORED and methods.get(name).max_models != 1
]


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def balanced_models(models: list[Tensor], base: Tensor) -> list[Tensor]:
    lengths = [float((x - base).norm()) for x in models]
    others = [length for length in lengths if length]
    mean = sum(others) / max(1, len(others))
    return [
        base + (x - base) * (mean / length if length else 1)
        for x, length in zip(models, lengths, strict=True)
    ]


def merge_balanced(
    name: str, models: list[Tensor], base: Tensor, block: int = 1 << 17, **values: object
) -> Tensor:
    method = methods.get(name)
    task = replace(make_task(method, models, base, values), balance=True)
    return run(method, task, [*models, base], block)


def test_by_hand() -> None:
    """Lengths 5 and 15, mean 10: the first is doubled, the second loses a third."""
    models, base = [t(3, 4), t(0, 15)], t(0, 0)
    got = merge_balanced("task_arithmetic", models, base, weight=[1, 1])
    assert got.tolist() == pytest.approx([6, 18])
    # One that did not change does not count, and stays.
    got = merge_balanced("task_arithmetic", [*models, base.clone()], base, weight=[1, 1, 1])
    assert got.tolist() == pytest.approx([6, 18])
    got = merge_balanced("task_arithmetic", [base.clone(), base.clone()], base, weight=[1, 1])
    assert got.tolist() == [0, 0]


@pytest.mark.parametrize("name", BALANCED)
@pytest.mark.parametrize("block", [48, 1 << 17])
def test_every_method_sees_balanced_models(name: str, block: int) -> None:
    if methods.get(name).algorithm.balances:
        pytest.skip("balanced in any case")
    noise = torch.Generator().manual_seed(5)
    base = torch.randn(24, 16, generator=noise, dtype=torch.float64)
    sizes = [0.1, 0.01, 0.03][: models_of(methods.get(name))]
    models = [base + size * torch.randn(24, 16, generator=noise) for size in sizes]
    values = values_of(methods.get(name), len(models))
    want = merge(name, balanced_models(models, base), base, block=block, **values)  # type: ignore[arg-type]  # values
    got = merge_balanced(name, models, base, block, **values)
    assert torch.allclose(got, want, rtol=0, atol=1e-11)


@given(cases(2, 4))
def test_formula(case: Case) -> None:
    want = case.base + sum(x - case.base for x in balanced_models(case.models, case.base))
    got = merge_balanced("task_arithmetic", case.models, case.base, 24, weight=1)
    assert close(got, want, size_of(case) * 1e3)


def test_half_precision_is_rounded_once() -> None:
    noise = torch.Generator().manual_seed(5)
    base = torch.randn(2000, generator=noise).bfloat16()
    models = [(base + s * torch.randn(2000, generator=noise)).bfloat16() for s in (0.5, 0.05)]
    got = merge_balanced("task_arithmetic", models, base, weight=0.5)
    exact = [x.double() for x in models]
    want = base + 0.5 * sum(x - base for x in balanced_models(exact, base.double()))
    assert ((got.double() - want).abs() <= want.abs() * 2.0**-8 * 1.001 + 1e-6).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_show(bad: float) -> None:
    got = merge_balanced("ties", [t(1, bad, 2), t(1, 2, 3)], t(0, 0, 0), weight=1)
    assert not bool(got.isfinite().all())


def nde(case: Case, density: float, seed: int) -> tuple[Tensor, Tensor]:
    models = balanced_models(case.models, case.base)
    deltas = [x - case.base for x in models]
    kept = [kept_by_chance(d, density, seed, "t", m) for m, d in enumerate(deltas)]
    kept = [rescaled(d, k) if density < 1 else k for d, k in zip(deltas, kept, strict=True)]
    total = torch.stack(kept).sum(0)
    sign = torch.where(total >= 0, 1.0, -1.0)
    agree = torch.stack([torch.where(k.sign() == sign, k, 0.0) for k in kept])
    # Where votes cancel up to rounding, either sign is right.
    doubt = total.abs() < 1e-12 * torch.stack(kept).abs().sum(0).clamp(min=1e-300)
    return case.base + agree.sum(0) / agree.ne(0).sum(0).clamp(min=1), doubt


@given(cases(1, 3, ["random", "near", "base", "zero"]))
def test_nde_formula(case: Case) -> None:
    for density in (0.5, 1.0):
        want, doubt = nde(case, density, 3)
        got = merge("nde", case.models, case.base, density=density, seed=3, block=24)
        got = torch.where(doubt, want, got)
        assert close(got, want, size_of(case) * 1e4)


def test_nde_by_hand() -> None:
    """Balanced to (6, 8, 0) and (0, −10, 0): −10 outvotes 8."""
    got = merge("nde", [t(3, 4, 0), t(0, -15, 0)], t(0, 0, 1) * 0, density=1)
    assert got.tolist() == pytest.approx([6, -10, 0])


def test_nde_is_dare_ties_of_balanced_models() -> None:
    noise = torch.Generator().manual_seed(1)
    base = torch.randn(5000, generator=noise, dtype=torch.float64)
    models = [base + s * torch.randn(5000, generator=noise) for s in (1, 0.1)]
    want = merge(
        "dare_ties", balanced_models(models, base), base, weight=1, density=0.3, normalize=True
    )
    got = merge("nde", models, base, density=0.3)
    assert torch.allclose(got, want, rtol=0, atol=1e-12)
    assert not got.equal(merge("nde", models, base, density=0.3, seed=1))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(8, 4, generator=noise)
    return [
        write_checkpoint(
            tmp_path / f"m{i}", {"w": base + s * torch.randn(8, 4, generator=noise), "n": base[0]}
        )
        for i, s in enumerate((0.0, 1.0, 0.1))
    ]


def recipe(paths: list[Path], method: str = "task_arithmetic", **parameters: object) -> str:
    return json.dumps(
        {
            "merge_method": method,
            "base_model": str(paths[0]),
            "models": [{"model": str(p)} for p in paths[1:]],
            "parameters": {"weight": 1, **parameters},
        }
    )


def plan(text: str) -> Plan:
    return make_plan(parse(text))


def test_engine_and_formula(tmp_path: Path, paths: list[Path]) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(recipe(paths, balance=[{"filter": "n", "value": False}, {"value": True}]))
    assert worker("merge", path, tmp_path / "out", "--progress", "off") == 0
    base, *models = [read_tensors(p)["w"].double() for p in paths]
    want = base + sum(x - base for x in balanced_models(models, base))
    assert torch.allclose(read_tensors(tmp_path / "out")["w"].double(), want, atol=1e-6)


def test_it_is_part_of_what_resumption_compares(paths: list[Path]) -> None:
    keys = {plan(recipe(paths, balance=balance)).key for balance in (True, False)}
    assert len(keys) == 2
    assert plan(recipe(paths)).key in keys


def test_where_it_does_not_apply(paths: list[Path]) -> None:
    (first,) = parse(recipe(paths, "linear", balance=True)).warnings
    assert "linear does not read it" in first
    text = yaml.safe_load(recipe(paths, "multislerp", balance=True))
    del text["base_model"]
    with pytest.raises(UsageError, match="balance scales task vectors and needs a base_model"):
        plan(json.dumps(text))
    with pytest.raises(UsageError, match="balance"):
        parse(recipe(paths, balance="often"))
