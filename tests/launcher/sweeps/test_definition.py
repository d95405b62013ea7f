"""SWEEP.yml: members of a grid and a list, places in a recipe, names, and every fault at once."""

from pathlib import Path

import pytest
import yaml

from merge_launch.errors import UsageError
from merge_launch.sweeps.definition import Sweep, name_of_value, read_sweep
from merge_worker.errors import UsageError as RecipeError
from merge_worker.recipe.places import Place, PlaceError, labels, put

BASE = """
merge_method: ties
base_model: m1
models:
  - model: m2
    parameters: {weight: 0.5}
  - model: m3
parameters: {density: 0.5}
dtype: float32
"""


def sweep(work: Path, text: str, base: str = BASE) -> Sweep:
    (work / "base.yml").write_text(base)
    (work / "s.yml").write_text("recipe: base.yml\n" + text)
    return read_sweep("s.yml", None, str(work))


def recipes(made: Sweep) -> list[dict]:
    return [yaml.safe_load(member.merge.text) for member in made.members]


def test_a_grid_is_every_combination(work: Path) -> None:
    made = sweep(work, "grid: {models.0.parameters.weight: [0.3, 0.5], parameters.density: [1, 2]}")
    assert made.labels == ("weight", "density")
    assert [tuple(member.values.values()) for member in made.members] == [
        (0.3, 1),
        (0.3, 2),
        (0.5, 1),
        (0.5, 2),
    ]
    for member, recipe in zip(made.members, recipes(made), strict=True):
        assert recipe["models"][0]["parameters"]["weight"] == member.values["weight"]
        assert recipe["parameters"]["density"] == member.values["density"]
        assert recipe["models"][1] == {"model": "m3"}


def test_a_list_sets_several_values_together(work: Path) -> None:
    made = sweep(
        work,
        "list:\n  - {merge_method: ties}\n  - {merge_method: dare_ties, parameters.density: 0.1}\n"
        "grid: {dtype: [float32, bfloat16]}\n",
    )
    assert [(r["merge_method"], r["parameters"]["density"], r["dtype"]) for r in recipes(made)] == [
        ("ties", 0.5, "float32"),
        ("ties", 0.5, "bfloat16"),
        ("dare_ties", 0.1, "float32"),
        ("dare_ties", 0.1, "bfloat16"),
    ]


def test_a_recipe_within_the_sweep(work: Path) -> None:
    (work / "s.yml").write_text(
        "recipe:\n  merge_method: linear\n  models: [{model: a, parameters: {weight: 1}}]\n"
        "grid: {models.0.model: [x/a, y/a]}\n"
    )
    made = read_sweep("s.yml", "elsewhere", str(work))
    assert [each.merge.out for each in made.members] == [
        *(str(work / "elsewhere" / name) for name in (m.name for m in made.members))
    ]
    assert [r["models"][0]["model"] for r in recipes(made)] == ["x/a", "y/a"]
    # Two values that look alike in a name.
    assert len({member.name for member in made.members}) == 2


def test_every_entry_of_a_list_and_new_mappings(work: Path) -> None:
    made = sweep(work, 'grid: {"models[*].parameters.weight": [0.25, 0.75]}')
    assert [[m["parameters"]["weight"] for m in r["models"]] for r in recipes(made)] == [
        [0.25, 0.25],
        [0.75, 0.75],
    ]


@pytest.mark.parametrize(
    "value", ["'1e5'", "'null'", "'0x10'", "'2001-01-01'", "'on'", "' a\n\n b'"]
)
def test_texts_stay_texts(work: Path, value: str) -> None:
    made = sweep(work, f"list: [{{models.1.model: {value}}}, {{models.1.model: m4}}]")
    assert recipes(made)[0]["models"][1]["model"] == yaml.safe_load(value)


def test_names_of_members(work: Path) -> None:
    text = "grid: {models.0.parameters.weight: [0.3], parameters.density: [0.2, 1]}\n"
    assert [m.name for m in sweep(work, text).members] == [
        "weight_0.3-density_0.2",
        "weight_0.3-density_1",
    ]
    named = sweep(work, text + 'name: "d{density} of w{weight}"\n')
    assert [m.name for m in named.members] == ["d0.2-of-w0.3", "d1-of-w0.3"]
    assert named.members[0].merge.out == str(work / "s" / "d0.2-of-w0.3")


def test_long_names_are_cut_and_stay_apart(work: Path) -> None:
    names = [
        m.name for m in sweep(work, f"grid: {{models.1.model: [{'a' * 80}1, {'a' * 80}2]}}").members
    ]
    assert len(set(names)) == 2 and max(map(len, names)) <= 60


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        (["parameters.density"], ["density"]),
        (["models.0.parameters.weight", "parameters.weight"], ["models.0.weight", "weight"]),
        (
            ["models.0.parameters.weight", "models.1.parameters.weight"],
            ["models.0.weight", "models.1.weight"],
        ),
        (["parameters.t", "t"], ["parameters.t", "t"]),
        (["slices.0.sources.1.layer_range"], ["layer_range"]),
    ],
)
def test_labels_are_the_shortest_that_differ(paths: list[str], short: list[str]) -> None:
    assert labels([tuple(path.split(".")) for path in paths]) == short


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.3, "0.3"),
        (-1, "m1"),
        (1e-05, "1em05"),
        (True, "true"),
        (None, "null"),
        ("models/chat/v2", "v2"),
        ([0, 0.5, 1], "0-0.5-1"),
    ],
)
def test_values_in_names(value: object, word: str) -> None:
    assert name_of_value(value) == word


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing varies; give 'grid' or 'list'"),
        ("gird: {a: [1]}", "unknown key 'gird' (did you mean 'grid'?)"),
        ("grid: {dtype: float32}", "'grid' must have a list of values"),
        ("grid: {dtype: []}", "'grid' must have a list of values"),
        ("list: [a]", "'list' must be a list of mappings"),
        ("grid: {a..b: [1]}", "'a..b' is not a path; give one such as models.1"),
        ("grid: {dtype: [a]}\nlist: [{dtype: b}]", "dtype is both in 'grid' and in 'list'"),
        ("name: 3\ngrid: {dtype: [float32]}", "'name' must be text"),
        (
            "name: 'x{dens}'\ngrid: {parameters.density: [0.1]}",
            "unknown placeholder '{dens}' (did you mean 'density'?); known are {density}",
        ),
        ("grid: {models.7.model: [a]}", "models.7.model: 7 is beyond a list of 2 (0 to 1)"),
        ("grid: {models.x.model: [a]}", "'x' must be a position of a list (0 to 1)"),
        ("grid: {dtype.x: [a]}", "dtype.x: 'x' would be within 'float32'"),
        ("grid: {slices.0.x: [a]}", "the base recipe has no list 'slices'"),
        (
            f"grid: {{seed: [{', '.join(map(str, range(200)))}], a: &a {list(range(200))}}}",
            "40000 members",
        ),
        ("list: [{dtype: float32}, {dtype: float32}]", "is the same recipe as"),
    ],
)
def test_faults_of_a_sweep_file(work: Path, text: str, words: str) -> None:
    with pytest.raises((UsageError, RecipeError)) as caught:
        sweep(work, text)
    assert words in str(caught.value)
    assert "s.yml" in str(caught.value)


def test_faults_of_all_members_in_one_list(work: Path) -> None:
    with pytest.raises(UsageError) as caught:
        sweep(work, "grid: {merge_method: [tis, linear, ties], parameters.densty: [1, 2]}")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("s.yml: merge_method_tis-densty_1 and 1 more: merge_method: unknown")
    assert any("parameters.densty: ties does not read it" in line for line in lines)
    assert len(lines) == len(set(lines))


def test_unused_values_of_the_base_are_a_warning(work: Path) -> None:
    made = sweep(work, "list: [{merge_method: linear, base_model: null}, {merge_method: ties}]")
    assert made.warnings == (
        "s.yml: merge_method_linear-base_model_null: parameters.density: linear does not read it",
    )


@pytest.mark.parametrize("base", ["a: 1\n---\nb: 2\n", "- a\n", "a: [\n"])
def test_invalid_bases(work: Path, base: str) -> None:
    with pytest.raises(Exception, match=r"base\.yml"):
        sweep(work, "grid: {dtype: [a]}", base)


def test_missing_files(work: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yml: No such file"):
        read_sweep("nowhere.yml", None, str(work))
    (work / "s.yml").write_text("recipe: nowhere.yml\ngrid: {a: [1]}")
    with pytest.raises(RecipeError, match=r"s\.yml: recipe nowhere\.yml: No such file"):
        read_sweep("s.yml", None, str(work))


def test_keys_with_dots() -> None:
    recipe = {"tokens": {"a.b": {"c": 1}}}
    put(recipe, Place.read('tokens."a.b".c', "s"), 2)
    assert recipe == {"tokens": {"a.b": {"c": 2}}}
    with pytest.raises(PlaceError):
        put(recipe, Place.read("tokens.0.x.0", "s"), 2)
