"""LiNeS on any method with a base: one factor a layer on the difference from the base."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker import methods
from merge_worker.errors import UsageError
from merge_worker.method import BaseRole
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.method_cases import Case, cases
from support.method_driver import make_task, merge, run
from support.recipes import run as worker

WITH_BASE = [name for name in methods.names() if methods.get(name).base is BaseRole.REQUIRED]
NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.w" for i in range(5)),
    *(f"vision.blocks.{i}.w" for i in range(2)),
    "model.norm.weight",
    "lm_head.weight",
]


def tensors(seed: int) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {name: torch.randn(12, 8, generator=noise).bfloat16() for name in NAMES}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [write_checkpoint(tmp_path / f"m{seed}", tensors(seed)) for seed in range(3)]


def recipe(models: list[Path], method: str = "task_arithmetic", **parameters: object) -> str:
    weights = any(p.name == "weight" for p in methods.get(method).parameters)
    mine = {"parameters": {"weight": 0.4}} if weights else {}
    return json.dumps(
        {
            "merge_method": method,
            "base_model": str(models[0]),
            "models": [{"model": str(model), **mine} for model in models[1:]],
            "parameters": parameters,
        }
    )


def scales(plan: Plan) -> dict[str, float]:
    return {step.name: step.task.scale for step in plan.steps if step.task}


def test_factor_of_every_layer(models: list[Path]) -> None:
    factors = scales(make_plan(parse(recipe(models, lines_alpha=0.2, lines_beta=0.8))))
    for layer in range(5):
        assert factors[f"model.layers.{layer}.w"] == pytest.approx(0.2 + 0.8 * layer / 4)
    assert [factors[f"vision.blocks.{i}.w"] for i in range(2)] == [0.2, 1.0]
    # As in the authors' code: alpha for whatever is outside of layers.
    assert {factors[name] for name in NAMES if "s." not in name.replace("_", "")} == {0.2}


def test_layers_of_slices_count_in_the_result(models: list[Path]) -> None:
    def part(first: int, last: int) -> dict[str, object]:
        return {
            "sources": [
                {"model": str(m), "layer_range": [first, last], "parameters": {"weight": 1}}
                for m in models
            ]
        }

    text = yaml.safe_load(recipe(models, lines_alpha=0.0, lines_beta=1.0))
    del text["models"]
    text["slices"] = [part(0, 2), part(3, 4), part(1, 3)]
    for model in models:
        (model / "config.json").write_text('{"num_hidden_layers": 5}')
    factors = scales(make_plan(parse(json.dumps(text))))
    assert [factors[f"model.layers.{i}.w"] for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_engine_and_formula(tmp_path: Path, models: list[Path]) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(recipe(models, lines_alpha=0.3, lines_beta=0.7))
    assert worker("merge", path, tmp_path / "out", "--progress", "off") == 0
    got = read_tensors(tmp_path / "out")
    base, first, second = (tensors(seed) for seed in range(3))
    for name in NAMES:
        layer = int(name.split(".")[2]) / 4 if "layers" in name else 0
        layer = int(name.split(".")[2]) if "blocks" in name else layer
        b, x, y = (t[name].double() for t in (base, first, second))
        want = b + (0.3 + 0.7 * layer) * (0.4 * (x - b) + 0.4 * (y - b))
        assert ((got[name].double() - want).abs() <= want.abs() * 2.0**-8 * 1.01 + 1e-6).all()


def test_filters_and_gradients_work_on_them_too(models: list[Path]) -> None:
    given = {
        "lines_alpha": [{"filter": "lm_head", "value": 1.0}, {"value": 0.5}],
        "lines_beta": 0.5,
    }
    factors = scales(make_plan(parse(recipe(models, **given))))
    assert factors["lm_head.weight"] == 1.0
    assert factors["model.norm.weight"] == 0.5
    assert factors["model.layers.4.w"] == 1.0


def test_what_it_is_not_for(models: list[Path]) -> None:
    with pytest.raises(UsageError, match="lines_alpha and lines_beta go together"):
        make_plan(parse(recipe(models, lines_beta=0.5)))
    text = recipe(models, lines_alpha=0.5, lines_beta=0.5).replace("task_arithmetic", "linear")
    (first, _) = parse(text).warnings
    assert "linear does not read it" in first
    with pytest.raises(UsageError, match=r"lines_alpha.*'x' is not a number"):
        parse(recipe(models, lines_alpha="x", lines_beta=0.5))


def test_it_is_part_of_what_resumption_compares(models: list[Path]) -> None:
    plans = [make_plan(parse(recipe(models, lines_alpha=a, lines_beta=0))) for a in (0.5, 0.6)]
    assert plans[0].key != plans[1].key


def tasks(name: str, scale: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A method's result, the same with the factor, and the base."""
    method = methods.get(name)
    noise = torch.Generator().manual_seed(0)
    count = max(method.min_models, 2 if method.max_models is None else method.max_models)
    for shape in ((40, 30), (33,), (3, 8, 9)):
        base = torch.randn(shape, generator=noise, dtype=torch.float64)
        models = [base + 0.1 * torch.randn(shape, generator=noise) for _ in range(count)]
        values: dict[str, object] = {p.name: 0.4 for p in method.parameters if p.required}
        task = make_task(method, models, base, dict(values))
        plain = run(method, task, [*models, base], 1 << 17)
        yield plain, run(method, replace(task, scale=scale), [*models, base], 1 << 17), base


@pytest.mark.parametrize("name", WITH_BASE)
def test_every_method_with_a_base(name: str) -> None:
    for plain, scaled, base in tasks(name, 0.25):
        assert torch.allclose(scaled, base + 0.25 * (plain - base), rtol=0, atol=1e-13)
    for plain, same, _ in tasks(name, 1.0):
        assert same.equal(plain)
    for _, none, base in tasks(name, 0.0):
        assert none.equal(base)


@given(cases(1, 3), st.sampled_from([0.0, 0.3, 1.0, -0.5, 2.0]))
def test_it_is_lambda_where_there_is_one(case: Case, scale: float) -> None:
    models, base = case
    method = methods.get("task_arithmetic")
    task = make_task(method, models, base, {"weight": 0.7})
    got = run(method, replace(task, scale=scale), [*models, base], 1 << 17)
    want = merge("task_arithmetic", models, base, weight=0.7, lambda_=scale)
    size = max((float(x.abs().max()) for x in (*models, base) if x.numel()), default=0.0)
    assert torch.allclose(got, want, rtol=0, atol=1e-14 * max(size, 1e-30) * 8)
