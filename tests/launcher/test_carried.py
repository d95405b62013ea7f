"""A job carries what its merge can come to run, and that is enough."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint

import worker
from launcher import carried, payload
from worker import methods
from worker.methods._define import Base, Method

SOURCES = Path(worker.__file__).parent
# Imports each payload afresh in one process, since torch takes longer to load than all the merges.
DRIVER = """
import contextlib, io, json, sys
from pathlib import Path
found = {}
for archive, recipe, out in json.loads(Path(sys.argv[1]).read_text()):
    for name in [name for name in sys.modules if name.partition(".")[0] == "worker"]:
        del sys.modules[name]
    sys.path.insert(0, archive)
    from worker.cli import main
    from worker import methods
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["merge", recipe, out, "--progress", "off", "--device", "cpu"])
    files = [file.name for file in Path(out).glob("*.safetensors")]
    found[out] = [code, files, list(methods.names()), said.getvalue()]
    sys.path.remove(archive)
print(json.dumps(found))
"""


def recipe_of(method: Method, models: list[Path]) -> str:
    """The least that the method takes."""
    base, *others = map(str, models)
    count = min(max(method.least_models, 2), method.most_models or 3)
    required = [p for p in method.parameters if p.required]
    shared = {p.name: 0.5 for p in required if not p.per_model}
    each = {p.name: 1.0 for p in required if p.per_model}
    wants_base = method.base is not Base.IGNORED
    recipe: dict[str, Any] = {
        "merge_method": method.name,
        "models": [{"model": m, "parameters": each} for m in others[:count]],
        "parameters": shared,
    }
    return json.dumps(recipe | ({"base_model": base} if wants_base else {}))


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("carried")
    models = []
    for seed in range(4):
        noise = torch.Generator().manual_seed(seed)
        tensors = {"model.layers.0.weight": torch.randn(24, 16, generator=noise)}
        models.append(write_checkpoint(folder / f"m{seed}", tensors, config={}))
    runs = []
    for name in methods.names():
        recipe, archive = folder / f"{name}.yml", folder / f"{name}.pyz"
        recipe.write_text(recipe_of(methods.get(name), models))
        archive.write_bytes(payload.build(methods=frozenset({name})).archive)
        runs.append([str(archive), str(recipe), str(folder / name)])
    (folder / "runs.json").write_text(json.dumps(runs))
    argv = [sys.executable, "-I", "-c", DRIVER, str(folder / "runs.json")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    yield folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", methods.names())
def test_each_method_merges_with_what_its_job_carries(merges, name: str) -> None:
    folder, found = merges
    code, files, known, said = found[str(folder / name)]
    assert (code, files) == (0, ["model.safetensors"]), said
    assert known == sorted({name, "linear"})


def test_what_stays_behind() -> None:
    held = set(carried.needed(SOURCES, ["ties"]))
    assert {"__main__.py", "cli.py", "methods/ties.py", "methods/_vote.py"} <= held
    assert {"methods/linear.py", "methods/_lines.py"} <= held, "imported late, or by the engine"
    assert (
        not {"describe.py", "verify.py", "adapted.py", "methods/slerp.py", "methods/_matrix.py"}
        & held
    )
    assert held < set(carried.everything(SOURCES))


def test_imports_of_every_form(tmp_path: Path) -> None:
    texts = {
        "__init__.py": "",
        "__main__.py": "from worker.cli import entry\nimport json.decoder\n",
        "cli.py": "from . import one, __version__\nfrom json import loads\n"
        "if TYPE_CHECKING:\n    from .types_only import T\nelse:\n    from .real import T\n"
        "def f():\n    try:\n        with x:\n            from .late import g\n"
        "    except E:\n        from .deep.inner import h\n"
        "    with needed('rare'):\n        from .rare import i\n",
        "one.py": "from .deep import inner2 as x\n",
        "deep/__init__.py": "from ..above import y\n",
        "deep/inner.py": "",
        "deep/inner2.py": "",
        **{f"{name}.py": "" for name in ("types_only", "real", "late", "above", "alone", "rare")},
        "methods/__init__.py": "from ._define import Method\n",
        "methods/_define.py": "",
        "methods/linear.py": "from . import _family\n",
        "methods/_family.py": "from ..errors import E\n",
        "methods/other.py": "",
        "errors.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    left = set(texts) - set(carried.needed(tmp_path, []))
    assert left == {"types_only.py", "alone.py", "methods/other.py", "rare.py"}
    assert "rare.py" in carried.needed(tmp_path, [], features=["rare"])


def test_a_command_that_a_job_does_not_carry_says_so(tmp_path: Path) -> None:
    archive = tmp_path / "job.pyz"
    archive.write_bytes(payload.build(methods=frozenset({"linear"})).archive)
    argv = [sys.executable, str(archive), "methods"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("merge-worker: methods: ") and "merge-launch payload" in line
