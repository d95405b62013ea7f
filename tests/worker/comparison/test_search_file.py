"""The search that `compare` and `report` suggest: what varies, and within which range."""

from typing import Any

import pytest
import yaml

from merge_worker.comparison.search_file import search_text


def recipe(method: str, models: int = 2, **more: Any) -> dict[str, Any]:
    entries = [{"model": f"m{i}", "parameters": {"weight": 1.0}} for i in range(models)]
    return {"merge_method": method, "base_model": "base", "models": entries, **more}


def space(value: dict[str, Any]) -> dict[str, Any]:
    text = search_text(value)
    assert text is not None
    found: dict[str, Any] = yaml.safe_load(text)["space"]
    return found


SECOND, BOTH = (
    "models.1.parameters.weight",
    ("models.0.parameters.weight", "models.1.parameters.weight"),
)


def test_ratios_vary_where_the_method_divides_by_the_sum() -> None:
    assert space(recipe("linear")) == {SECOND: [0, 2]}
    assert space(recipe("multislerp")) == {SECOND: [0, 2]}
    assert space(recipe("nuslerp")) == {SECOND: [0, 2]}
    assert space(recipe("task_arithmetic", parameters={"normalize": True})) == {
        SECOND: [0, 2],
        "parameters.lambda": [0.2, 1.5],
    }


def test_every_weight_varies_where_it_does_not() -> None:
    assert space(recipe("task_arithmetic")) == {path: [0, 1.5] for path in BOTH}
    assert space(recipe("linear", parameters={"normalize": False})) == {
        path: [0, 1.5] for path in BOTH
    }


def test_the_second_weight_may_be_twice_the_first() -> None:
    value = recipe("linear")
    value["models"][0]["parameters"]["weight"] = 0.3
    assert space(value) == {SECOND: [0, 0.6]}
    value["models"][0]["parameters"]["weight"] = [0.3, 0.5]
    assert space(value) == {SECOND: [0, 2]}


def test_methods_with_the_same_values_are_exchanged() -> None:
    found = space(recipe("ties", parameters={"density": 0.5}))
    assert found["merge_method"] == {"choices": ["ties", "dare_ties", "task_arithmetic"]}
    others = space(recipe("dare_ties"))["merge_method"]
    assert others == {"choices": ["dare_ties", "ties", "task_arithmetic"]}
    assert found["parameters.density"] == [0.1, 1]


def test_densities_of_single_models_vary_where_they_stand() -> None:
    value = recipe("breadcrumbs")
    value["models"][1]["parameters"]["density"] = 0.5
    found = space(value)
    assert "parameters.density" not in found
    assert found["models.1.parameters.density"] == [0.1, 1]


def test_the_base_has_no_weight() -> None:
    value = recipe("task_arithmetic")
    value["models"].insert(0, {"model": "base"})
    assert list(space(value)) == ["models.1.parameters.weight", "models.2.parameters.weight"]
    value["merge_method"] = "linear"  # which merges it like the others
    assert list(space(value)) == ["models.1.parameters.weight", "models.2.parameters.weight"]


def test_slices_vary_together() -> None:
    value = recipe("task_arithmetic")
    sources = value.pop("models")
    value["slices"] = [{"sources": sources}, {"sources": sources}]
    assert list(space(value)) == [
        "slices.*.sources.0.parameters.weight",
        "slices.*.sources.1.parameters.weight",
    ]
    value["slices"].append({"sources": sources[:1]})
    assert search_text({**value, "merge_method": "linear"}) is None


def test_one_model_varies_by_lambda() -> None:
    assert space(recipe("task_arithmetic", 1)) == {"parameters.lambda": [0.2, 1.5]}


@pytest.mark.parametrize(
    "method", ["model_stock", "karcher", "passthrough", "arcee_fusion", "mine"]
)
def test_methods_without_values_have_no_search(method: str) -> None:
    assert search_text(recipe(method)) is None
    assert search_text({"merge_method": 5}) is None


def test_trials_grow_with_the_values() -> None:
    trials = [
        yaml.safe_load(str(search_text(recipe("linear", n))))["trials"] for n in (2, 3, 5, 50)
    ]
    assert trials == [20, 30, 60, 100]
