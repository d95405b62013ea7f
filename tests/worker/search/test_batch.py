"""`batch`: several candidates in one pass over the inputs, each scored by itself."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import tensor

from merge_worker.errors import UsageError
from merge_worker.search.definition import read_search, resolved_text
from merge_worker.search.results import Result, read_results
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import run

pytest.importorskip("optuna")


def search(folder: Path, **changes: Any) -> Path:
    models = [{"model": f"m{n}", "parameters": {"weight": 1}} for n in range(2)]
    for number in range(2):
        write_checkpoint(folder / f"m{number}", {"a": tensor([float(number)])})
    table = {
        "recipe": {"merge_method": "linear", "parameters": {"normalize": False}, "models": models},
        "out": str(folder / "runs"),
        "space": {"models.1.parameters.weight": [0, 2]},
        "evaluate": "python -c 'print(1)'",
        "sampler": "random",
        "trials": 3,
        "keep": "all",
        **changes,
    }
    (folder / "search.yml").write_text(yaml.safe_dump(table))
    return folder / "search.yml"


def passes(folder: Path) -> list[str]:
    """Return the candidates that a merge began with: each has the output of its program."""
    return sorted(path.parent.name for path in (folder / "runs").glob("*/merge.out"))


def found(folder: Path) -> dict[str, Result]:
    return {result.name: result for result in read_results(folder / "runs")}


@pytest.mark.slow
def test_one_pass_for_all(tmp_path: Path) -> None:
    file = search(tmp_path)
    assert run("search", file, "--batch", 7, "--relative-to", tmp_path) == 0
    results = found(tmp_path)
    assert len(results) == 7 and all(result.is_done for result in results.values())
    assert passes(tmp_path) == ["average"]  # two parents need no merge
    for name in ("t0000", "t0001", "t0002"):
        (weight,) = results[name].values.values()
        merged = read_tensors(tmp_path / "runs" / name / "model")["a"]
        assert float(merged) == pytest.approx(weight)
    assert len({result.merge_s for result in results.values() if result.kind != "parent"}) == 1


@pytest.mark.slow
def test_a_refused_recipe_keeps_no_other_from_its_score(tmp_path: Path) -> None:
    space = {"merge_method": {"choices": ["linear", "nearswap"]}}  # which has no base here
    file = search(tmp_path, space=space, sampler="grid", batch=3)
    run("search", file, "--relative-to", tmp_path)
    results = found(tmp_path)
    failed = [r for r in results.values() if not r.is_done]
    assert [next(iter(r.values.values())) for r in failed] == ["nearswap"]
    assert all(r.is_done for r in results.values() if r.kind != "trial")


def test_the_option_replaces_the_key(tmp_path: Path) -> None:
    text = search(tmp_path, batch=2).read_text()
    assert read_search(text, "s.yml", tmp_path).batch == 2
    changed = resolved_text(text, "s.yml", tmp_path, 5)
    assert read_search(changed, "s.yml", tmp_path).batch == 5
    assert read_search(changed, "s.yml", tmp_path).key == read_search(text, "s.yml", tmp_path).key


@pytest.mark.parametrize("batch", [0, -1, 1.5, "two", 101])
def test_faults(batch: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch: expected a whole number from 1 to 100"):
        read_search(search(tmp_path, batch=batch).read_text(), "s.yml", tmp_path)


def test_not_in_memory(tmp_path: Path) -> None:
    text = search(tmp_path, evaluate="in-memory", perplexity="x", batch=2).read_text()
    with pytest.raises(UsageError, match="not with 'evaluate: in-memory'"):
        read_search(text, "s.yml", tmp_path)
