"""`evaluate: in-memory`: the same scores as on disk, and no weights on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_worker.errors import UsageError
from merge_worker.search.definition import read_search
from merge_worker.search.results import Result, read_results
from support.language_models import make, write_tokenizer
from support.recipes import run

pytest.importorskip("optuna")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two small models and a text."""
    for name, seed in (("m0", 1), ("m1", 2)):
        write_tokenizer(make(tmp_path / name, "LlamaForCausalLM", "llama", seed=seed))
    (tmp_path / "text.txt").write_text("the cab\n\na bath the bath\n\nabc def the\n")
    return tmp_path


def search(folder: Path, **changes: Any) -> Path:
    table: dict[str, Any] = {
        "recipe": {
            "merge_method": "linear",
            "models": [{"model": f"m{i}", "parameters": {"weight": 1.0}} for i in range(2)],
        },
        "out": str(folder / "runs"),
        "space": {"models.1.parameters.weight": [0, 2]},
        "evaluate": "in-memory",
        "perplexity": "text.txt",
        "sampler": "random",
        "trials": 3,
        **changes,
    }
    table = {key: value for key, value in table.items() if value is not None}
    (folder / "search.yml").write_text(yaml.safe_dump(table, sort_keys=False))
    return folder / "search.yml"


def searched(folder: Path, code: int = 0, **changes: Any) -> dict[str, Result]:
    words = ["search", search(folder, **changes), "--relative-to", folder]
    assert run(*words) == code
    return {result.name: result for result in read_results(folder / "runs")}


def weights_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]


def test_scores_and_no_weights(models: Path) -> None:
    found = searched(models, validate={"perplexity": "text.txt"})
    assert sorted(found) == [
        "average", "parent-m0", "parent-m1", "recipe", "t0000", "t0001", "t0002",
    ]  # fmt: skip
    assert all(result.is_done for result in found.values())
    assert weights_in(models / "runs") == []
    # Equal recipes have equal scores, and different ones do not.
    assert found["average"].score == found["recipe"].score
    assert len({result.score for result in found.values()}) == 6
    validated = json.loads((models / "runs" / "parent-m0" / "validation.json").read_text())
    assert validated["score"] == found["parent-m0"].score


def test_a_function_gets_model_and_tokenizer(models: Path) -> None:
    (models / "measure.py").write_text(
        "def both(model, tokenizer):\n"
        "    print('a line of its own')\n"
        "    n = len(tokenizer('the')['input_ids'])\n"
        "    w = model.get_input_embeddings().weight.float().sum().item()\n"
        "    return {'results': {'sum': w, 'tokens': n}}\n"
        "def alone(model, more=1):\n"
        "    return float(model.lm_head.weight.float().sum()) + more\n"
    )
    given = {"perplexity": None, "function": "measure.py:both", "score": {"results.sum": 2}}
    found = searched(models, **given)
    assert found["parent-m0"].parts.keys() == {"results.sum"} and found["t0002"].is_done
    half = (found["parent-m0"].parts["results.sum"] + found["parent-m1"].parts["results.sum"]) / 2
    assert found["average"].score == pytest.approx(2 * half, abs=1e-3)
    printed = (models / "runs" / "t0000" / "evaluate.out").read_text()
    assert printed.startswith("a line of its own\n")
    alone = {"perplexity": None, "function": "measure.py:alone", "out": str(models / "more")}
    searched(models, **alone)
    assert all(result.is_done for result in read_results(models / "more"))


FAILURES = {
    "missing file": ("no.py:f", "no.py: no such Python file"),
    "missing function": ("measure.py:g", "measure.py: no function 'g'"),
    "raises": ("measure.py:f", "measure.py:f: ValueError: boom"),
    "nothing": ("measure.py:nothing", "measure.py:nothing: "),
    "nan": ("measure.py:nan", "measure.py:nan: 'score' is nan"),
    "does not load": ("broken.py:f", "broken.py: SyntaxError"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_functions_that_fail(case: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "measure.py").write_text(
        "def f(model):\n    raise ValueError('boom')\n"
        "def nothing(model):\n    return None\n"
        "def nan(model):\n    return float('nan')\n"
    )
    (models / "broken.py").write_text("def f(\n")
    function, expected = FAILURES[case]
    words = ["search", search(models, perplexity=None, function=function), "--relative-to", models]
    assert run(*words) in (2, 3)
    printed = capsys.readouterr().err
    assert "3 candidates in a row failed alike" in printed and expected in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_command_that_validates_gets_a_folder(models: Path) -> None:
    searched(
        models, validate="python -c \"import os; print(os.path.getsize('model.safetensors'))\""
    )
    best = (models / "runs" / "best.yml").read_text()
    (name,) = {
        path.parent.name
        for path in (models / "runs").glob("*/recipe.yml")
        if path.read_text() == best and (path.parent / "validation.json").exists()
    }
    assert json.loads((models / "runs" / name / "validation.json").read_text())["score"] > 1000


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"perplexity": None}, "in-memory requires 'perplexity: FILE' or 'function"),
    "both": ({"function": "a.py:b"}, "in-memory requires 'perplexity: FILE' or 'function"),
    "form": ({"perplexity": None, "function": "a.py"}, 'expected FILE.py:NAME, got "a.py"'),
    "command": ({"evaluate": "x", "perplexity": None, "function": "a.py:b"}, "requires 'evaluate"),
    "alone": ({"evaluate": None, "perplexity": None, "function": "a.py:b"}, "requires 'evaluate"),
    "score": ({"score": "a.b"}, "conflicts with 'perplexity'"),
    "validate": (
        {
            "evaluate": "x",
            "perplexity": None,
            "validate": {"evaluate": "in-memory", "perplexity": "t"},
        },
        "in-memory is for all candidates",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_the_file(case: str, tmp_path: Path) -> None:
    changes, expected = FAULTS[case]
    with pytest.raises(UsageError) as caught:
        read_search(search(tmp_path, **changes).read_text(), "search.yml", tmp_path)
    assert expected in str(caught.value)
