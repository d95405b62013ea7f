"""Direct merges: values of `--param`, and the places that messages name."""

from typing import Any

import pytest
import yaml

from merge_worker.errors import UsageError
from merge_worker.recipe import parse
from merge_worker.recipe.shorthand import recipe_from_values
from merge_worker.recipe.yaml_document import COMMAND


def recipe(*param: str, models: tuple[str, ...] = ("a", "b", "c"), **given: Any) -> dict[str, Any]:
    values = {"method": "ties", "base_model": "a", "param": param, **given}
    read: dict[str, Any] = yaml.safe_load(recipe_from_values(models, values))
    return read


def test_one_value_is_shared_and_a_list_is_one_for_each_model_but_the_base() -> None:
    made = recipe("density=0.5,0.3", "lambda=0.7", "normalize=false")
    assert made["parameters"] == {"lambda": 0.7, "normalize": False}
    assert made["models"] == [
        {"model": "b", "parameters": {"density": 0.5, "weight": 1.0}},
        {"model": "c", "parameters": {"density": 0.3, "weight": 1.0}},
    ]
    assert recipe("density=0.5")["parameters"] == {"density": 0.5}


def test_a_list_for_a_value_of_all_models_is_a_gradient() -> None:
    assert recipe("t=0,0.5,1", method="slerp")["parameters"] == {"t": [0, 0.5, 1]}


def test_weight_is_a_parameter_too() -> None:
    made = recipe("weight=[2, 1]")
    assert [entry["parameters"]["weight"] for entry in made["models"]] == [2, 1]
    with pytest.raises(UsageError, match="--param weight and --weights or --schedule exclude"):
        recipe("weight=1", weights="1,2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["densty=1"], r"--param densty: ties does not read it \(did you mean 'density'\?\)"),
        (["density"], "--param density: write NAME=VALUE, such as t=0.5"),
        (["density="], "--param density=: write NAME=VALUE"),
        (["density=1", "density=0"], "--param density is given twice"),
        (["density=1,2,3"], r"--param density has 3 values for 2 models \(b, c\); give one"),
    ],
)
def test_faults(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        recipe(*words)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"param": ["density=x"]}, "--param density: 'x' is not a number"),
        ({"base_model": None}, "the command: ties needs a base: add --base-model MODEL"),
        ({"models": ("a", "b", "b")}, "^b: model 'b' is listed twice"),
    ],
)
def test_messages_name_words_of_the_command(given: dict[str, Any], told: str) -> None:
    values = {"method": "ties", "base_model": "a", **given}
    text = recipe_from_values(values.pop("models", ("a", "b", "c")), values)
    with pytest.raises(UsageError, match=told):
        parse(text, COMMAND)
