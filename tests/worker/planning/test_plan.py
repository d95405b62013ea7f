"""Plans: which values reach which tensor, in which order models stand, what the key covers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.errors import InputError, UsageError
from merge_worker.planning import resolve
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.planning.step import CPU_BLOCK, DEVICE_BLOCK
from merge_worker.recipe import parse
from support.checkpoint_factory import write_checkpoint
from support.recipes import run


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for value, name in enumerate(("a", "b", "base")):
        tensors = {
            "embed.weight": torch.full((4, 2), float(value)),
            "layers.0.mlp.w": torch.full((2, 3), float(value)),
            "layers.1.mlp.w": torch.full((2, 3), float(value)),
            "layers.2.attn.w": torch.full((2, 3), float(value)),
            "norm.weight": torch.full((2,), float(value)),
        }
        write_checkpoint(tmp_path / name, tensors, config={"_name_or_path": name})
    return tmp_path


def plan(models: Path, text: str, **options: Any) -> Plan:
    return make_plan(parse(text, "r.yml"), PlanOptions(relative_to=models, **options))


def fault(models: Path, text: str, **options: Any) -> list[str]:
    with pytest.raises((UsageError, InputError)) as caught:
        plan(models, text, **options)
    return str(caught.value).splitlines()


def values(planned: Plan, name: str) -> dict[str, Any]:
    return {s.name: s.task.values[name] for s in planned.steps if s.task}


def test_values_by_layer(models: Path) -> None:
    text = """
merge_method: linear
models:
  - {model: a, parameters: {weight: [1, 2]}}
  - {model: b, parameters: {weight: [{filter: attn, value: 7}, {filter: norm, value: [8, 9]}]}}
parameters: {weight: 0.5, normalize: [{filter: layers.1., value: false}]}
"""
    planned = plan(models, text)
    assert values(planned, "weight") == {
        "embed.weight": (1, 0.5),
        "layers.0.mlp.w": (1, 0.5),
        "layers.1.mlp.w": (1.5, 0.5),
        "layers.2.attn.w": (2, 7),
        "norm.weight": (1, 8),
    }
    assert {n for n, v in values(planned, "normalize").items() if not v} == {"layers.1.mlp.w"}


def files(planned: Plan) -> list[str]:
    return [Path(info.file).parent.name for info in planned.steps[0].sources]


JOINED = """
merge_method: linear
models: [base, b, a]
base_model: base
parameters: {weight: 1}
"""


def test_models_in_the_order_of_the_recipe_and_the_base_last(models: Path) -> None:
    text = JOINED.replace("linear", "task_arithmetic")
    planned = plan(models, text)
    assert files(planned) == ["b", "a", "base"]
    assert planned.steps[0].task and planned.steps[0].task.has_base
    assert planned.config == {"_name_or_path": "base"}
    assert planned.labels == ("base", "b", "a")


def test_a_base_that_joins_keeps_its_place(models: Path) -> None:
    assert files(plan(models, JOINED)) == ["base", "b", "a"]
    planned = plan(models, JOINED.replace("[base, b, a]", "[b, a]"))
    assert files(planned) == ["b", "a", "base"]
    assert planned.steps[0].task and not planned.steps[0].task.has_base
    assert planned.config == {"_name_or_path": "base"}


def test_a_value_that_is_missing(models: Path) -> None:
    text = "merge_method: linear\nmodels:\n- a\n- {model: b, parameters: {weight: {value: 1}}}"
    assert fault(models, text) == [
        "r.yml:3: models[0]: linear needs a value of 'weight' of a; add 'parameters: {weight: …}'",
        "  for embed.weight, layers.0.mlp.w, layers.1.mlp.w and 2 more",
    ]
    text = "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}], base_model: b}"
    assert "'weight' of b, which joins the models as the base; add" in fault(models, text)[0]


def test_a_value_that_cannot_work(models: Path) -> None:
    weight = "{weight: [{filter: mlp, value: 0}, {value: 1}]}"
    text = f"{{merge_method: linear, models: [a, b], parameters: {weight}}}"
    assert fault(models, text) == [
        "r.yml: the weights add up to 0: set normalize: false, or other weights",
        "  for layers.0.mlp.w, layers.1.mlp.w",
    ]


def test_values_of_all_models_are_told_at_once(models: Path) -> None:
    listed = "- {model: a, parameters: {density: 3}}\n- {model: b, parameters: {density: -1}}\n"
    assert fault(models, f"merge_method: ties\nbase_model: base\nmodels:\n{listed}") == [
        "r.yml:4: models[0]: ties needs a value of 'weight' of a; add 'parameters: {weight: …}'",
        "r.yml:5: models[1]: ties needs a value of 'weight' of b; add 'parameters: {weight: …}'",
        "r.yml:4: models[0].parameters.density: density must be between 0 and 1, got 3.0",
        "r.yml:5: models[1].parameters.density: density must be between 0 and 1, got -1.0",
        "  for embed.weight, layers.0.mlp.w, layers.1.mlp.w and 2 more",
    ]


def test_no_more_faults_than_can_be_read(models: Path) -> None:
    values = ", ".join(f"{{filter: layers.{n}., value: {n + 2}}}" for n in range(12))
    for name in ("deep", "deeper", "deepest"):
        tensors = {f"layers.{n}.w": torch.ones(2) for n in range(12)}
        write_checkpoint(models / name, tensors, config={})
    listed = f"models:\n- deep\n- deeper\nparameters: {{weight: 1, density: [{values}]}}\n"
    faults = fault(models, f"merge_method: ties\nbase_model: deepest\n{listed}")
    assert faults[:2] == [
        "r.yml:6: parameters.density: density must be between 0 and 1, got 2.0",
        "  for layers.0.w",
    ]
    assert faults[-1] == "  and 2 more like these" and len(faults) == 2 * 10 + 1


def test_all_models_that_are_not_there(models: Path) -> None:
    text = "{merge_method: linear, models: [x, a, y], parameters: {weight: 1}}"
    faults = fault(models, text)
    assert [line.split(":")[0] for line in faults] == ["x", "y"]


def test_strict(models: Path) -> None:
    text = "{merge_method: linear, models: [a, b], parameters: {weight: 1, wieght: 2}}"
    assert plan(models, text).warnings == (
        "r.yml:1: parameters.wieght: linear does not read it (did you mean 'weight'?)",
    )
    assert "parameters.wieght" in fault(models, text, strict=True)[0]


TEXT = "{merge_method: linear, models: [a, b], parameters: {weight: 1}}"


@pytest.mark.parametrize(
    "other",
    [
        TEXT.replace("1", "[1, 0.5]"),
        TEXT.replace("[a, b]", "[b, a]"),
        TEXT.replace("}}", ", normalize: false}}"),
        TEXT[:-1] + ", dtype: float16}",
    ],
)
def test_the_key_covers_the_recipe(models: Path, other: str) -> None:
    assert plan(models, TEXT).key != plan(models, other).key


def test_the_key_covers_inputs_and_not_words(models: Path) -> None:
    before = plan(models, TEXT).key
    assert plan(models, TEXT + "\n# a remark\n", threads=3, memory_bytes=1 << 20).key == before
    assert plan(models, TEXT, seed=1).key != before
    (models / "a" / "config.json").write_text('{"model_type": "other"}')
    assert plan(models, TEXT).key != before


def test_what_is_read_again_is_cut_into_larger_blocks(models: Path) -> None:
    values = "parameters: {weight: 1, density: %s}"
    ties = "{merge_method: ties, base_model: base, models: [a, b], " + values + "}"

    def blocks(text: str, **options: int) -> set[int]:
        return {step.grid.block for step in plan(models, text, **options).steps}

    assert blocks(TEXT) == blocks(ties % 1) == {CPU_BLOCK}
    assert blocks(ties % 0.5) == {2 * CPU_BLOCK}
    assert blocks(ties % 0.5, block=DEVICE_BLOCK) == {DEVICE_BLOCK}


def test_the_key_covers_the_cut(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may cut otherwise; pieces that it left are not of this one's blocks."""
    text = "{merge_method: slerp, base_model: a, models: [a, b], parameters: {t: 0.5}}"
    before = plan(models, text).key
    monkeypatch.setattr(resolve, "MULTIPASS_FACTOR", 1)
    assert plan(models, text).key != before


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, "F16"), ("same", "F32"), ("bfloat16", "BF16"), ("float64", "F64")],
)
def test_dtypes(models: Path, dtype: str | None, expected: str) -> None:
    text = TEXT[:-1] + ", dtype: float32, out_dtype: float16}"
    assert {s.dtype.name for s in plan(models, text, dtype=dtype).steps} == {expected}


def test_warnings_reach_the_user(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = models / "r.yml"
    recipe.write_text(TEXT.replace("}}", ", densty: 1}}"))
    assert run("check", recipe, "--relative-to", models) == 0
    assert "parameters.densty: linear does not read it" in capsys.readouterr().out
    assert run("check", recipe, "--relative-to", models, "--strict") == 2
