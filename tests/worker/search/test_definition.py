"""SEARCH.yml: its values, and every fault with its line and a way out."""

from pathlib import Path

import pytest

from merge_worker.errors import UsageError
from merge_worker.search.candidates import fixed_candidates, trial_candidate, value_labels
from merge_worker.search.definition import Search, read_search, resolved_text
from merge_worker.search.space import Choice, Interval, Range, Share

HEAD = """recipe:
  merge_method: ties
  base_model: b
  models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]
  parameters: {density: 0.5}
"""
SPACE = "space: {models.1.parameters.weight: [0, 1]}\n"
EVALUATE = "evaluate: 'echo 1'\n"


def read(text: str, folder: Path = Path()) -> Search:
    return read_search(text, "s.yml", folder)


def test_a_whole_file() -> None:
    search = read(
        HEAD
        + """out: runs
space:
  models.1.parameters.weight: [0, 1]
  models[0].parameters.weight: {low: 0, high: 1, step: 0.3}
  parameters.density: {low: 0.05, high: 1, log: true}
  merge_method: {choices: [ties, dare_ties]}
  base_model: {choices: [b]}
start:
- {parameters.density: 0.5, merge_method: dare_ties}
- {}
evaluate: 'echo {}'
score: {a.b: 2, "c,none": -1}
direction: minimize
trials: 7
sampler: tpe
seed: 3
keep: 2
validate: 'echo 2'
repeat: 3
"""
    )
    kinds = [type(dimension) for dimension in search.space]
    assert kinds == [Range, Range, Range, Choice, Choice]
    assert search.space[1] == Range(search.space[1].place, Interval(0, pytest.approx(0.9), 0.3))
    assert search.start == ({"parameters.density": 0.5, "merge_method": "dare_ties"}, {})
    assert search.measure.score == (("a.b", 2.0), ("c,none", -1.0))
    assert search.validation is not None
    assert (search.validation.command, search.validation.score) == ("echo 2", search.measure.score)
    assert (search.direction, search.trials, search.sampler) == ("minimize", 7, "tpe")
    assert (search.seed, search.keep, search.repeat, search.out) == (3, 2, 3, "runs")


def test_defaults() -> None:
    search = read(HEAD + SPACE + EVALUATE)
    assert (search.direction, search.trials, search.sampler) == ("maximize", 60, "auto")
    assert (search.seed, search.keep, search.repeat) == (0, 1, 0)
    assert search.validation is None and search.measure.score == ()
    assert read(HEAD + SPACE + "perplexity: data.txt\n").direction == "minimize"


@pytest.mark.parametrize(("word", "number"), [("best", 1), ("all", None), ("none", 0), ("5", 5)])
def test_weights_that_stay(word: str, number: int | None) -> None:
    assert read(f"{HEAD}{SPACE}{EVALUATE}keep: {word}").keep == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + SPACE + EVALUATE + "trails: 3",
            "s.yml:8: trails: unknown key (did you mean 'trials'",
        ),
        (HEAD + EVALUATE, "s.yml:1: space: expected paths into the recipe"),
        (HEAD + SPACE, "requires 'evaluate: COMMAND' or 'perplexity: FILE'"),
        (HEAD + SPACE + EVALUATE + "perplexity: a.txt", "conflicts with 'evaluate'; keep one"),
        (HEAD + SPACE + "perplexity: a\ndirection: maximize", "a perplexity is minimized"),
        (HEAD + SPACE + "perplexity: a\nscore: b", "s.yml:8: score: conflicts with 'perplexity'"),
        (HEAD + SPACE + EVALUATE + "direction: up", "expected maximize, minimize"),
        (HEAD + SPACE + EVALUATE + "trials: 0", "expected a whole number from 1 to"),
        (HEAD + SPACE + EVALUATE + "trials: 2.5", "got 2.5"),
        (HEAD + SPACE + EVALUATE + "sampler: tpee", "(did you mean 'tpe'?)"),
        (HEAD + SPACE + EVALUATE + "keep: -1", "expected best, all, none or a number"),
        (HEAD + SPACE + EVALUATE + "score: {a: 0}", "s.yml:8: score.a: expected a weight other"),
        (HEAD + SPACE + EVALUATE + "score: [a]", "expected a path such as"),
        (HEAD + SPACE + EVALUATE + "out: 3", "s.yml:8: out: expected text, got 3"),
        (HEAD + SPACE + EVALUATE + "validate: {evalute: x}", "(did you mean 'evaluate'?)"),
        (
            HEAD + SPACE + EVALUATE + "start: [{models.1.parameters.weight: 2}]",
            "from 0 to 1, got 2",
        ),
        (HEAD + SPACE + EVALUATE + "start: [{parameters.density: 0.1}]", "not in 'space'"),
        (HEAD + SPACE + EVALUATE + "start: 3", "expected a list of mappings"),
        (HEAD + SPACE + EVALUATE + "trials: 2\ntrials: 3", "trials is given twice"),
        (
            HEAD + EVALUATE + "space: {models.7.parameters.weight: [0, 1]}",
            "7 is beyond a list of 2",
        ),
        (HEAD + EVALUATE + "space: {a b..c: [0, 1]}", "is not a path"),
        (HEAD + EVALUATE + "space: {dtype: [0, 1, 2]}", "give [low, high]"),
        (HEAD + EVALUATE + "space: {dtype: [a, b]}", "{choices: […]}"),
        (HEAD + EVALUATE + "space: {dtype: {choices: []}}", "choices must be a list"),
        (HEAD + EVALUATE + "space: {dtype: {choices: [a, a]}}", "a choice is given twice"),
        (HEAD + EVALUATE + "space: {parameters.density: [1, 0]}", "low 1 must be below high 0"),
        (
            HEAD + EVALUATE + "space: {parameters.density: {low: 0, high: .inf}}",
            "high must be a number",
        ),
        (
            HEAD + EVALUATE + "space: {parameters.density: {low: 0, high: 1, step: 2}}",
            "step must be above 0 and at most high minus low",
        ),
        (
            HEAD + EVALUATE + "space: {parameters.density: {low: 0, high: 1, log: true}}",
            "log requires a low above 0",
        ),
        (
            HEAD + EVALUATE + "space: {parameters.density: {low: 1, high: 2, log: true, step: 1}}",
            "log conflicts with step",
        ),
        (
            HEAD + EVALUATE + "space: {parameters.density: {low: 0, high: 1, points: 1}}",
            "points: expected a whole number from 2",
        ),
        (
            HEAD + EVALUATE + "space: {parameters.density: {low: 0, hihg: 1}}",
            "hihg: unknown key (did you mean 'high'?)",
        ),
        (
            HEAD + EVALUATE + "space: {models.0.parameters.weight: {low: 0, high: 1, share: 1}}",
            "share needs several places",
        ),
        (
            HEAD + EVALUATE + "space: {models.*.parameters.weight: {low: 0.1, high: 1, share: 1}}",
            "weights that share 1 go from 0 to 1",
        ),
        (
            HEAD + EVALUATE + "space: {models.0.model: {choices: [a]}, 'models[0].model': [0, 1]}",
            "the same place as models.0.model",
        ),
        (HEAD + EVALUATE + "space: {parameters.densty: [0, 1]}", "the method does not read it"),
        (HEAD + EVALUATE + "space: {merge_method: {choices: [tis]}}", "unknown method 'tis'"),
        ("- 1", "a search is a mapping"),
        ("a: [", "not valid YAML"),
        ("", "a search is a mapping"),
    ],
)
def test_faults(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert message in str(caught.value)
    assert "s.yml" in str(caught.value)


def test_all_faults_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        read(HEAD + "space: {parameters.density: [1, 0]}\ntrials: x\nkeep: y\n" + EVALUATE)
    assert len(str(caught.value).splitlines()) == 3


def test_a_recipe_in_a_file(tmp_path: Path) -> None:
    import yaml

    table = yaml.safe_load(HEAD)["recipe"]
    (tmp_path / "base.yml").write_text(yaml.safe_dump(table))
    text = "recipe: base.yml\n" + SPACE + EVALUATE
    assert read(text, tmp_path).base == table
    resolved = resolved_text(text, "s.yml", tmp_path)
    assert read(resolved).key == read(text, tmp_path).key
    with pytest.raises(UsageError, match=r"recipe nowhere\.yml: No such file"):
        read("recipe: nowhere.yml\n" + SPACE + EVALUATE)


def test_weights_that_share_a_sum() -> None:
    space = "space: {models.*.parameters.weight: {low: 0, high: 1, share: 1}}\n"
    search = read(HEAD + space + EVALUATE + "start: [{models.*.parameters.weight: [0.25, 0.75]}]")
    (share,) = search.space
    assert isinstance(share, Share)
    candidate = trial_candidate(search, 0, search.start[0])
    assert list(candidate.values.values()) == [0.25, 0.75]
    assert value_labels(search) == ["models.0.weight", "models.1.weight"]


def test_fixed_candidates(tmp_path: Path) -> None:
    for name in ("b", "m1", "m2", "deep/m1", "c"):
        (tmp_path / name).mkdir(parents=True)
    text = HEAD.replace("{model: m2,", "{model: deep/m1,") + EVALUATE
    search = read(text + SPACE + "out: x", tmp_path)
    names = [each.name for each in fixed_candidates(search, tmp_path)]
    assert names == ["parent-b", "parent-m1", "parent-m1-2", "average", "recipe"]
    average = next(c for c in fixed_candidates(search, tmp_path) if c.name == "average")
    assert "deep/m1" in str(average.text) and "model: b" not in str(average.text)
    models = "space: {base_model: {choices: [b, c]}}"
    names = [c.name for c in fixed_candidates(read(text + models, tmp_path), tmp_path)]
    assert "parent-c" in names


def test_a_parent_with_an_adapter_is_merged(tmp_path: Path) -> None:
    (tmp_path / "m1").mkdir()
    text = HEAD.replace("model: m2", "model: m1+lora") + SPACE + EVALUATE
    (parent,) = [
        each
        for each in fixed_candidates(read(text, tmp_path), tmp_path)
        if each.name == "parent-m1+lora"
    ]
    assert parent.source is None and "model: m1+lora" in str(parent.text)


def test_a_recipe_that_needs_the_values_has_no_candidate_of_its_own() -> None:
    text = HEAD.replace("merge_method: ties", "merge_method: slerp")
    text = text.replace(", {model: m2, parameters: {weight: 1}}", "")
    text = text.replace("parameters: {density: 0.5}", "dtype: float32")
    search = read(text + "space: {parameters.t: [0, 1]}\n" + EVALUATE)
    assert "recipe" not in [
        c.name for c in fixed_candidates(search, Path()) if search.stands is None
    ]
