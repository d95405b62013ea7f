"""The bytes of a result do not depend on threads, memory or ranks, whatever the method."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_worker import methods
from merge_worker.method import BaseRole, Method
from support.method_driver import models_of, values_of
from support.recipes import one_tensor_models, run, shards_of

METHODS = [methods.get(name) for name in methods.names()]
ELEMENTS = 400_000
"""Several blocks, the last one short."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    yield one_tensor_models(tmp_path_factory.mktemp("models"), ELEMENTS, 4)


def recipe(method: Method, models: list[Path], path: Path) -> Path:
    count = models_of(method)
    values = values_of(method, count)
    shared = {name: value for name, value in values.items() if not isinstance(value, list)}
    entries = [
        {
            "model": str(models[i + 1]),
            "parameters": {n: value[i] for n, value in values.items() if isinstance(value, list)},
        }
        for i in range(count)
    ]
    text = {"merge_method": method.name, "models": entries, "parameters": shared}
    if method.base is not BaseRole.IGNORED:
        text["base_model"] = str(models[0])
    path.write_text(json.dumps(text), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bytes_do_not_depend_on_the_run(
    method: Method, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(method, models, tmp_path / "recipe.yml")

    def merged(name: str, *options: str) -> dict[str, int]:
        out = tmp_path / name
        assert run("merge", path, out, "--progress", "off", *options) == 0
        return shards_of(out)

    whole = merged("whole", "--threads", "1")
    assert len(whole) == 1
    assert merged("small", "--threads", "4", "--memory", "4MiB") == whole
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("2", "0", "1"):
        monkeypatch.setenv("RANK", rank)
        shared = tmp_path / "shared"
        words = ("--progress", "off", "--memory", "8MiB", "--ranks", "auto:0s")
        code = run("merge", path, shared, *words)
        # A share is not the merge, but for methods whose tensors are one block each.
        assert code == (0 if (shared / "merge_manifest.json").exists() else 75)
    assert shards_of(shared) == whole
