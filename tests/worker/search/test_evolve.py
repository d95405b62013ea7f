"""Files of mergekit-evolve: at equal values the recipe is that of mergekit, in genomes.json."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_worker.errors import UsageError
from merge_worker.recipe.places import Place, put
from merge_worker.search.definition import read_search, resolved_text
from merge_worker.search.evolve import Translation, layer_count, translate
from support.paths import ROOT

GOLDENS = ROOT / "tests" / "goldens_mergekit"
CASES = {
    case["name"]: case for case in yaml.safe_load((GOLDENS / "genomes.yml").read_text("utf-8"))
}
RECIPES = json.loads((GOLDENS / "genomes.json").read_text("utf-8"))
GENOME: dict[str, Any] = {"models": ["m1", "m2"], "merge_method": "linear"}


def of(genome: dict[str, Any], layers: int | None = 4, **more: Any) -> Translation:
    value = {"genome": {**GENOME, **genome}, "tasks": ["mine"], **more}
    return translate(value, "genome.yml", lambda model: layers)


def faults(genome: dict[str, Any], layers: int | None = 4, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        of(genome, layers, **more)
    return str(caught.value)


def values_in(recipe: Any) -> dict[str, Any]:
    """Return the numbers of a recipe by path, gradients as lists."""
    values: dict[str, Any] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, dict):
            for key, item in node.items():
                walk(item, (*path, key))
        elif isinstance(node, list) and not all(isinstance(item, float) for item in node):
            for number, item in enumerate(node):
                walk(item, (*path, str(number)))
        elif isinstance(node, float) or (isinstance(node, list) and "layer_range" not in path):
            values[".".join(path)] = node

    walk(recipe, ())
    return values


def without_bases_that_nothing_reads(recipe: dict[str, Any]) -> dict[str, Any]:
    """Drop the base that mergekit appends to linear, and the weight of a base among the models."""
    recipe = copy.deepcopy(recipe)
    base = recipe.get("base_model")
    if recipe["merge_method"] == "linear":
        recipe.pop("base_model", None)
    for part in recipe.get("slices", [recipe]):
        key = "sources" if "sources" in part else "models"
        if recipe["merge_method"] == "linear":
            part[key] = [source for source in part[key] if source["model"] != base]
        for source in part[key]:
            if source["model"] == base and recipe["merge_method"] != "slerp":
                source.pop("parameters", None)
    return recipe


@pytest.mark.parametrize("name", CASES)
def test_recipes_are_those_of_mergekit(name: str) -> None:
    search = of(CASES[name]["genome"]).search
    expected = without_bases_that_nothing_reads(RECIPES[name])
    wanted = values_in(expected)
    assert set(search["space"]) == set(wanted)  # every value varies, and nothing else
    recipe = copy.deepcopy(search["recipe"])
    for path, value in wanted.items():
        put(recipe, Place.read(path, "test"), value)
    assert recipe == expected


@pytest.mark.parametrize("name", ["linear start", "ties start", "slerp start"])
def test_the_recipe_as_it_stands_is_the_start_of_mergekit(name: str) -> None:
    expected, recipe = RECIPES[name], of(CASES[name]["genome"]).search["recipe"]
    for path, value in values_in(expected).items():
        assert values_in(recipe)[path] == pytest.approx(value, abs=5e-5)  # four digits


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].get("values")])
def test_the_values_of_mergekit_are_in_the_ranges(name: str) -> None:
    space = of(CASES[name]["genome"]).search["space"]
    for path, value in values_in(without_bases_that_nothing_reads(RECIPES[name])).items():
        span = space[path]
        low, high = span if isinstance(span, list) else (span["low"], span["high"])
        numbers = value if isinstance(value, list) else [value]
        assert all(low <= number <= high for number in numbers)
        assert isinstance(span, list) or span["points"] == len(numbers)


def test_ranges() -> None:
    weight = "slices.0.sources.0.parameters.weight"
    base = {"merge_method": "ties", "base_model": "b"}
    assert of({}).search["space"][weight] == [0, 1]
    assert of({"allow_negative_weights": True}).search["space"][weight] == [-1, 1]
    assert of(base).search["space"][weight] == [0, 2]
    assert of({**base, "allow_negative_weights": True}).search["space"][weight] == [-2, 2]
    assert of(base).search["space"][weight.replace("weight", "density")] == [0, 1]


def test_models_that_are_elsewhere_are_merged_whole() -> None:
    search = of({"filters": ["mlp"]}, layers=None).search
    assert "slices" not in search["recipe"]
    assert next(iter(search["space"])) == "models.0.parameters.weight.0.value"
    search = of({"merge_method": "slerp"}, layers=None).search
    assert search["recipe"]["base_model"] == "m1" and search["space"] == {"parameters.t": [0, 1]}
    text = faults({"layer_granularity": 2}, layers=None)
    assert "the number of layers of m1 is not known here" in text


def test_tasks_become_a_command_and_a_score() -> None:
    search = of({}).search
    assert search["score"] == "results.mine.acc,none" and search["direction"] == "maximize"
    assert "--tasks mine " in search["evaluate"] and "pretrained=." in search["evaluate"]
    assert search["evaluate"].endswith("--apply_chat_template") and search["trials"] == 100
    tasks = ["a", {"name": "b", "weight": 2, "metric": "f1,none"}, {"name": "a", "weight": 0.5}]
    search = of({}, tasks=tasks, limit=50, num_fewshot=3).search
    assert search["score"] == {"results.a.acc,none": 1.5, "results.b.f1,none": 2}
    assert "--tasks a,b " in search["evaluate"]
    assert search["evaluate"].endswith(
        "--limit 50 --num_fewshot 3 --apply_chat_template --fewshot_as_multiturn"
    )
    assert "chat" not in of({}, apply_chat_template=False).search["evaluate"]
    assert of({}, tasks=[{"name": "a", "weight": -1}]).search["score"] == {"results.a.acc,none": -1}
    assert "--tasks 'a; rm x' " in of({}, tasks=["a; rm x"]).search["evaluate"]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"merge_method": "della"}, "'della' is not known here"),
    "misspelt": ({"merge_method": "tie"}, "did you mean 'ties'?"),
    "no method": ({"merge_method": None}, "genome.merge_method: missing"),
    "no base": ({"merge_method": "ties"}, "genome.base_model: missing; ties requires it"),
    "base": ({"base_model": 5}, "genome.base_model: expected the name of a model"),
    "no models": ({"models": []}, "genome.models: missing"),
    "models": ({"models": "m1"}, "genome.models: expected a list of models"),
    "twice": ({"models": ["m1", "m1"]}, "genome.models: one stands twice"),
    "granularity": (
        {"layer_granularity": 3},
        "3 does not divide the 4 layers of m1; one of 1, 2, 4",
    ),
    "no group": ({"layer_granularity": -1}, "genome.layer_granularity: expected the number"),
    "half": ({"layer_granularity": 0.5}, "genome.layer_granularity: expected the number"),
    "three": ({"merge_method": "slerp", "models": ["a", "b", "c"]}, "slerp merges two models"),
    "filters": ({"merge_method": "slerp", "filters": ["mlp"]}, "genome.filters: not for slerp"),
    "smooth": ({"merge_method": "slerp", "smooth": True}, "genome.smooth: not for slerp"),
    "flag": ({"smooth": "yes"}, "genome.smooth: expected true or false"),
    "unknown": ({"layer_granularty": 2}, "unknown key (did you mean 'layer_granularity'?)"),
    "words": ({"filters": [1]}, "genome.filters: expected a list of words"),
    "tokenizer": ({"tokenizer_source": 1}, "genome.tokenizer_source: expected text"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_the_genome(case: str) -> None:
    genome, expected = FAULTS[case]
    text = faults(genome)
    assert expected in text and text.startswith("genome.yml: ")


TASK_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"tasks": []}, "tasks: missing"),
    "text": ({"tasks": "a"}, "tasks: missing"),
    "number": ({"tasks": [5]}, "tasks[0]: expected the name of a task"),
    "no name": ({"tasks": [{"weight": 1}]}, "tasks[0].name: expected"),
    "weight": ({"tasks": [{"name": "a", "weight": "x"}]}, "tasks[0].weight: expected a number"),
    "metric": ({"tasks": [{"name": "a", "metric": 1}]}, "tasks[0].metric: expected a metric"),
    "key": ({"tasks": [{"name": "a", "wieght": 1}]}, "did you mean 'weight'?"),
    "limit": ({"limit": -1}, "limit: expected a number from 0"),
    "flag": ({"shuffle": "no"}, "shuffle: expected true or false"),
    "top": ({"limt": 1}, "limt: unknown key (did you mean 'limit'?)"),
}


@pytest.mark.parametrize("case", TASK_FAULTS)
def test_faults_of_the_tasks(case: str) -> None:
    more, expected = TASK_FAULTS[case]
    assert expected in faults({}, **more)


def test_all_faults_at_once() -> None:
    text = faults({"merge_method": "tie", "models": [], "smooth": 1}, tasks=[], limit="all")
    assert len(text.splitlines()) == 5
    with pytest.raises(UsageError, match="genome: expected a mapping"):
        translate({"genome": 5, "tasks": ["a"]}, "g.yml", lambda model: 4)


def test_notes() -> None:
    assert of({}).notes == ()
    (note,) = of({}, tasks=["mmlu_abstract_algebra", "gsm8k_train", "mine"]).notes
    assert note.startswith("mmlu_abstract_algebra: a model chosen by a benchmark")
    assert "linear has no base beside its models" in of({"base_model": "b"}).notes[0]
    assert of({}, shuffle=True, random_init=True).notes == (
        "shuffle has no effect here",
        "random_init has no effect here",
    )


def test_a_file_is_read_as_a_search(tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"num_hidden_layers": 6}')
    text = "genome: {models: [m1, m2], merge_method: ties, base_model: m3, layer_granularity: 3}\n"
    text += "tasks: [mine, {name: gsm8k, weight: 0.5}]\n"
    search = read_search(text, "genome.yml", tmp_path)
    parts = [part["sources"] for part in search.base["slices"]]
    assert [[source["layer_range"] for source in part] for part in parts] == [
        [[0, 3]] * 3,
        [[3, 6]] * 3,
    ]
    assert len(search.space) == 2 * 2 * 2 and search.trials == 100 and search.maximizes
    assert search.measure.score == (("results.mine.acc,none", 1), ("results.gsm8k.acc,none", 0.5))
    (warning,) = search.warnings
    assert warning.startswith("genome.yml: gsm8k: a model chosen by a benchmark")
    resolved = resolved_text(text, "genome.yml", tmp_path)
    assert read_search(resolved, "genome.yml", Path("elsewhere")).key == search.key


def test_layers_of_a_model(tmp_path: Path) -> None:
    assert layer_count(tmp_path, "missing") is None and layer_count(tmp_path, "org/name") is None
    (tmp_path / "m").mkdir()
    assert layer_count(tmp_path, "m") is None
    for text, expected in (
        ('{"n_layer": 5}', 5),
        ('{"text_config": {"num_hidden_layers": 7}, "vision_config": {"num_hidden_layers": 3}}', 7),
        ("[]", None),
        ("{", None),
    ):
        (tmp_path / "m" / "config.json").write_text(text)
        assert layer_count(tmp_path, "m") == expected
