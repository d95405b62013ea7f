"""`plan` and `average`: facts before the merge, faults as data, nothing printed or read."""

from pathlib import Path

import pytest

import merge_worker as mw


def test_facts(models: list[Path]) -> None:
    plan = mw.average(models)
    assert plan.method == "linear" and plan.models == tuple(map(str, models))
    assert plan.reads > plan.writes > 12_000 and plan.memory > 0 and plan.warnings == ()
    assert plan.tensors["embed.weight"] == ("bfloat16", (64, 48), True)
    assert not plan.tensors["mask"].merged
    assert plan.config["model_type"] == "none"
    assert "tensors    6 merged, 2 copied" in str(plan)


def test_tensors_are_in_the_order_of_the_file(models: list[Path], tmp_path: Path) -> None:
    from merge_worker.checkpoint.header import read_shard

    plan = mw.average(models)
    mw.merge(plan, tmp_path / "out")
    stored = read_shard(tmp_path / "out" / "model.safetensors").tensors
    assert list(plan.tensors) == [info.name for info in stored]


def test_every_fault_is_data_on_one_exception(models: list[Path]) -> None:
    recipe = {
        "merge_method": "tie",
        "models": [{"model": "a", "parameters": {"weight": "x"}}, {"modle": "b"}],
    }
    with pytest.raises(mw.errors.UsageError) as caught:
        mw.plan(recipe)
    faults = caught.value.faults
    assert [fault.place for fault in faults] == ["recipe:1", "recipe:6", "recipe:6"]
    assert faults[0].text == "merge_method: unknown method 'tie' (did you mean 'ties'?)"
    assert faults[0].hint.startswith("methods: arcee_fusion")
    with pytest.raises(mw.errors.InputError) as missing:
        mw.average(["/no/such", "/nor/this", models[0]])
    assert [fault.place for fault in missing.value.faults] == ["/no/such", "/nor/this"]


def test_relative_paths(models: list[Path]) -> None:
    names = [model.name for model in models]
    start = models[0].parent
    assert mw.average(names, relative_to=start).key == mw.average(models).key
    text = f"merge_method: linear\nmodels: [{', '.join(names)}]\nparameters: {{weight: 1}}\n"
    assert mw.plan(text, relative_to=start).key == mw.average(models).key


def test_paths_and_tuples_in_a_dict(models: list[Path]) -> None:
    recipe = {"merge_method": "linear", "models": tuple(models), "parameters": {"weight": 1}}
    assert mw.plan(recipe).key == mw.average(models).key


def test_a_wrong_option() -> None:
    with pytest.raises(mw.errors.UsageError, match="'x' is not a size"):
        mw.average(["a", "b"], memory="x")
