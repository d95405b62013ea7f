"""The searches that `compare` and `report` suggest are files that the search takes as they are."""

from pathlib import Path

import pytest
import yaml

from merge_worker.comparison.search_file import search_text
from merge_worker.registry import OWN
from merge_worker.search.definition import read_search

BASE = {"models": [{"model": f"m{i}", "parameters": {"weight": 1.0}} for i in range(2)]}


@pytest.mark.parametrize("method", [name for name in OWN.names() if name != "passthrough"])
def test_every_method(method: str, tmp_path: Path) -> None:
    known = {parameter.name for parameter in OWN.get(method).parameters}
    recipe = {"merge_method": method, "base_model": "b", **BASE}
    if "weight" not in known:
        recipe["models"] = ["m0"] if OWN.get(method).max_models == 1 else ["m0", "m1"]
    if method == "slerp":
        recipe |= {"base_model": "m0", "models": ["m0", "m1"], "parameters": {"t": 0.5}}
    if method == "nearswap":
        recipe["parameters"] = {"t": 0.001}
    if OWN.get(method).base.name == "IGNORED":
        del recipe["base_model"]
    text = search_text(recipe)
    if text is None:
        assert not known & {"weight", "t", "density", "lambda", "alpha", "select_topk"}
        return
    search = read_search(text, "search.yml", tmp_path)
    assert search.warnings == () and search.stands is not None
    assert search.measure.data == "held-out.txt" and not search.maximizes
    assert len(search.space) == len(yaml.safe_load(text)["space"]) <= 5
