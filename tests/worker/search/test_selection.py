"""`sampler: greedy` and `sampler: category`, with models whose mixture the score can see."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from merge_worker.errors import UsageError
from merge_worker.search.definition import read_search, resolved_text
from merge_worker.search.results import Result, best_of, read_results
from support.checkpoint_factory import read_tensors
from support.language_models import make
from support.recipes import run

pytest.importorskip("optuna")

# The first row of the head says how much of each model is in a merge.
MEASURE = """
import json
def mix(model):
    return model.lm_head.weight[0, :4].float().tolist()
def tasks(model):
    a, b, c, d = mix(model)
    return {"math": 1 - (a - 0.5) ** 2, "code": 1 - (c - 0.5) ** 2, "chat": 1 - b - 2 * d}
def skills(model):
    a, b, c, d = mix(model)
    return {"math": a, "code": c, "chat": b / 2 + d}
def never(model):
    return 1 - mix(model)[1]
def fails_for_m1(model):
    if mix(model) == [0, 1, 0, 0]:
        raise ValueError("m1")
    return tasks(model)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four models and a file of measures."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(4):
        model = make(folder / f"m{number}", "LlamaForCausalLM", "llama", seed=number + 1)
        tensors = read_tensors(model)
        tensors["lm_head.weight"][0, :4] = 0
        tensors["lm_head.weight"][0, number] = 1
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (folder / "measure.py").write_text(MEASURE)
    return folder


def table_of(**changes: Any) -> dict[str, Any]:
    table: dict[str, Any] = {
        "recipe": {"merge_method": "linear", "models": ["m0", "m1", "m2", "m3"]},
        "evaluate": "in-memory",
        "function": "measure.py:tasks",
        "score": {"math": 1, "code": 1, "chat": 1},
        "sampler": "greedy",
        **changes,
    }
    return {key: value for key, value in table.items() if value is not None}


def searched(folder: Path, out: Path, code: int = 0, **changes: Any) -> dict[str, Result]:
    file = out.parent / "search.yml"
    file.write_text(yaml.safe_dump(table_of(out=str(out), **changes), sort_keys=False))
    assert run("search", file, "--relative-to", folder) == code
    return {result.name: result for result in read_results(out)}


def weights(result: Result) -> list[Any]:
    return list(result.values.values())


def trials(found: dict[str, Result]) -> list[Result]:
    return [result for name, result in found.items() if name.startswith("t")]


def test_a_greedy_soup(folder: Path, tmp_path: Path) -> None:
    found = searched(folder, tmp_path / "runs")
    # Alone: m0 and m2 have 1 - 0.25, 1 - 0.25 and 1; m1 has one less, m3 two less.
    alone = [found[f"parent-m{n}"].score for n in range(4)]
    assert alone == pytest.approx([2.5, 1.5, 2.5, 0.5], abs=1e-5)
    assert [weights(r) for r in trials(found)] == [
        [1.0, 0, 0, 0],  # the best alone
        [1.0, 0, 1.0, 0],  # better: stays
        [1.0, 1.0, 1.0, 0],  # worse
        [1.0, 0, 1.0, 1.0],  # worse
    ]
    best = best_of(found.values(), "maximize")
    assert best is not None and best.name == "t0001" and best.score == pytest.approx(3)
    text = yaml.safe_load((tmp_path / "runs" / "best.yml").read_text())
    assert [m["parameters"]["weight"] for m in text["models"]] == [1, 0, 1, 0]


def test_never_below_the_best_single_model(folder: Path, tmp_path: Path) -> None:
    changes = {"function": "measure.py:never", "score": None, "direction": "minimize"}
    found = searched(folder, tmp_path / "runs", **changes)  # only m1 alone has 0
    assert weights(found["t0000"]) == [0, 1.0, 0, 0]
    best = best_of(found.values(), "minimize")
    assert best is not None and best.score == pytest.approx(0, abs=1e-6)
    assert best.score == min(r.score for r in found.values() if r.score is not None)


def test_weights_of_the_recipe_are_kept(folder: Path, tmp_path: Path) -> None:
    models = [{"model": f"m{n}", "parameters": {"weight": n + 1}} for n in range(4)]
    found = searched(folder, tmp_path / "runs", recipe={"merge_method": "linear", "models": models})
    assert weights(found["t0001"]) == [1, 0, 3, 0]


def test_a_model_that_fails_alone_is_left_out(folder: Path, tmp_path: Path) -> None:
    found = searched(folder, tmp_path / "runs", function="measure.py:fails_for_m1")
    assert not found["parent-m1"].is_done
    assert all(weights(result)[1] == 0 for result in trials(found)) and len(trials(found)) == 3


def test_the_same_command_again_does_nothing(folder: Path, tmp_path: Path) -> None:
    first = searched(folder, tmp_path / "runs")
    assert searched(folder, tmp_path / "runs") == first


CATEGORY: dict[str, Any] = {"sampler": "category", "trials": 4}


def test_experts_by_the_scores_of_the_parents(folder: Path, tmp_path: Path) -> None:
    changes = {"function": "measure.py:skills", "score": {"math": 1, "code": 1, "chat": 3}}
    found = searched(folder, tmp_path / "runs", **changes, **CATEGORY)
    assert len(trials(found)) == 4
    for result in trials(found):
        text = yaml.safe_load((tmp_path / "runs" / result.name / "recipe.yml").read_text())
        own = {m["model"]: m["parameters"]["weight"] for m in text["models"]}
        assert list(own) == ["m0", "m2", "m3"]  # best of math, of code, and of chat
        assert result.score == pytest.approx(own["m0"] + own["m2"] + 3 * own["m3"], abs=1e-3)
    assert len(found["average"].parts) == 3  # of all four
    assert searched(folder, tmp_path / "runs", **changes, **CATEGORY) == found


def test_lower_values_are_better_where_their_weight_is_negative(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"function": "measure.py:skills", "score": {"math": -1, "code": 1}}
    searched(folder, tmp_path / "runs", **changes, **CATEGORY)
    # Least of math: m1, the first of three; most of code: m2.
    assert "experts: m1 for math; m2 for code" in capsys.readouterr().err


def scores(**rows: list[float]) -> dict[str, dict[str, float]]:
    return {m: dict(zip(("math", "code", "chat"), row, strict=True)) for m, row in rows.items()}


TABLE = scores(m0=[0.9, 0.1, 0.8], m1=[0.2, 0.3, 0.1], m2=[0.1, 0.9, 0.2], m3=[0.3, 0.2, 0.4])


@pytest.mark.parametrize("form", ["inline", "csv", "json", "losses"])
def test_experts_by_a_table(form: str, folder: Path, tmp_path: Path) -> None:
    given: Any = TABLE
    if form == "csv":
        lines = [
            "model,math,code,chat",
            *(f"{m},{','.join(map(str, r.values()))}" for m, r in TABLE.items()),
        ]
        (tmp_path / "t.csv").write_text("\n".join(lines))
        given = str(tmp_path / "t.csv")
    elif form == "json":
        (tmp_path / "t.json").write_text(str(TABLE).replace("'", '"'))
        given = {"file": str(tmp_path / "t.json")}
    elif form == "losses":
        given = {
            "table": {m: {t: -x for t, x in row.items()} for m, row in TABLE.items()},
            "direction": "minimize",
        }
    found = searched(folder, tmp_path / "runs", scores=given, **CATEGORY)
    made = trials(found)
    assert len(made) == 4 and all(len(result.values) == 2 for result in made)
    for result in made:
        text = yaml.safe_load((tmp_path / "runs" / result.name / "recipe.yml").read_text())
        assert [m["model"] for m in text["models"]] == ["m0", "m2"]
        own = [m["parameters"]["weight"] for m in text["models"]]
        assert sum(own) == pytest.approx(1) and min(own) >= 0
        assert result.parts["math"] == pytest.approx(1 - (own[0] - 0.5) ** 2, abs=1e-4)
    assert len([name for name in found if name.startswith("parent")]) == 4


def test_the_base_stays(tmp_path: Path) -> None:
    from merge_worker.search.selection import with_experts

    models = ["b", "m0", "m1", "m2", "m3"]
    recipe = {"merge_method": "ties", "base_model": "b", "models": models}
    table = table_of(recipe=recipe, scores=TABLE, **CATEGORY)
    search = with_experts(
        read_search(yaml.safe_dump(table, sort_keys=False), "s.yml", tmp_path), tmp_path, {}
    )
    assert [entry["model"] for entry in search.base["models"]] == ["b", "m0", "m2"]
    assert [place.text for place in search.space[0].places] == [  # type: ignore[attr-defined]
        "models.1.parameters.weight",
        "models.2.parameters.weight",
    ]
    assert "experts: m0 for math, chat; m2 for code" in search.warnings[-1]


def test_one_expert_of_everything(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {**TABLE, "m0": {"math": 1, "code": 1, "chat": 1}}
    searched(folder, tmp_path / "runs", code=2, scores=table, **CATEGORY)
    assert "m0 is the best model of every group of tasks" in capsys.readouterr().err


def test_the_file_that_is_sent_needs_no_other(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("model,x,y\nm0,1,2\nm1,2,1\nm2,0,0\nm3,0,0\n")
    text = yaml.safe_dump(table_of(scores="t.csv", **CATEGORY))
    search = read_search(text, "s.yml", tmp_path)
    sent = read_search(resolved_text(text, "s.yml", tmp_path), "s.yml", tmp_path / "elsewhere")
    assert sent.key == search.key and sent.table == search.table is not None


SLICES = {
    "merge_method": "linear",
    "slices": [{"sources": [{"model": "m0", "layer_range": [0, 1]}]}],
}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "space": ({"space": {"parameters.t": [0, 1]}}, "sampler greedy varies the weights"),
    "start": ({"start": [{}]}, "sampler greedy varies the weights"),
    "slices": ({"recipe": SLICES}, "this sampler needs 'models'"),
    "method": (
        {"recipe": {"merge_method": "karcher", "models": ["a", "b"]}},
        "karcher has no weights",
    ),
    "one": ({"recipe": {"merge_method": "linear", "models": ["a"]}}, "needs two or more models"),
    "twice": (
        {"recipe": {"merge_method": "linear", "models": ["a", "a"]}},
        "model 'a' is listed twice",
    ),
    "scores": ({"scores": TABLE}, "only sampler category reads this key"),
    "threshold": ({"threshold": 0.5}, "only sampler category reads this key"),
    "no table": ({**CATEGORY, "score": "math"}, "requires 'scores: TABLE.csv'"),
    "bounds": ({**CATEGORY, "threshold": 1.5}, "expected a correlation above 0 and up to 1"),
    "missing": ({**CATEGORY, "scores": "no.csv"}, "no.csv: No such file"),
    "model": (
        {**CATEGORY, "scores": {"m0": {"a": 1}, "x": {"a": 1}}},
        "no scores of m1; there are m0, x",
    ),
    "number": (
        {**CATEGORY, "scores": {"m0": {"a": "?"}, "x": {"a": 1}}},
        "m0, a: expected a number",
    ),
    "list": ({**CATEGORY, "scores": 5}, "expected a file, or scores by model and task"),
    "direction": ({**CATEGORY, "scores": {"table": TABLE, "direction": "up"}}, "expected maximize"),
    "key": ({**CATEGORY, "scores": {"file": "x", "direktion": "up"}}, "did you mean 'direction'?"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults(case: str, tmp_path: Path) -> None:
    changes, expected = FAULTS[case]
    with pytest.raises(UsageError) as caught:
        read_search(yaml.safe_dump(table_of(**changes)), "s.yml", tmp_path)
    assert expected in str(caught.value)
