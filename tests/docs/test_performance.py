"""docs/performance.md: its commands work, its tables are those of the figures beside it."""

import importlib.machinery
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("scripts/bench")
]
RUN = {"wall_s": 2.0, "cpu_s": 1.0, "peak_bytes": 1 << 30, "parts": {"stream_s": 1.5}}
FLOOR = {**RUN, "wall_s": 0.5, "parts": {}}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield
    for name in [name for name in sys.modules if name.startswith("bench")]:
        del sys.modules[name]


@pytest.fixture
def bench(scripts: None) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench", str(ROOT / "scripts/bench"))
    spec = importlib.util.spec_from_loader("bench", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    loader.exec_module(module)
    return module


def case(**changes: object) -> dict[str, object]:
    facts = {
        "method": "ties", "params": 1.1e9, "models": 3, "dtype": "bfloat16", "cache": "warm",
        "options": "", "together": 0, "failed": [], "runs": {"worker": [RUN], "floor": [FLOOR]},
    }  # fmt: skip
    return {**facts, **changes}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(
    bench: ModuleType, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge_worker import methods

    monkeypatch.setattr(sys, "argv", shlex.split(line))
    args = bench.arguments()
    assert set(bench.words(args.method)) <= {"average", "extract-lora", *methods.names()}


def test_every_method_has_a_recipe_that_is_understood(scripts: None) -> None:
    from bench_recipes import recipe  # type: ignore[import-not-found]

    from merge_worker import methods
    from merge_worker.recipe import parse

    models = [Path(name) for name in ("a", "b", "c")]
    for name in methods.names():
        for turn in (0, 2):
            parsed = parse(json.dumps(recipe(name, models, "bfloat16", turn)))
            assert parsed.method == name and parsed.warnings == ()
    one, other = (json.dumps(recipe("slerp", models, "bfloat16", turn)) for turn in (0, 1))
    assert one != other


def test_tables(scripts: None) -> None:
    import bench_tables  # type: ignore[import-not-found]

    more = {"ranks 2": [{**RUN, "parts": {"stream_s": 0.75}}], "one pass": [{**RUN, "wall_s": 4.0}]}
    runs = {"worker": [RUN], "floor": [FLOOR], "peer": [{**FLOOR, "wall_s": 50.0}], **more}
    whole, ranks, together = bench_tables.tables([case(runs=runs, together=5)])
    (cells,) = whole.rows
    assert cells["models"] == "3 × 1.1 B bfloat16"
    assert cells["streaming × floor"] == "3.00" and cells["peer × worker"] == "25.0"
    assert [row["× faster"] for row in ranks.rows] == ["1.00", "2.00"]
    assert together.rows[0]["pass × run"] == "2.00"
    assert "| ties |" in bench_tables.markdown(whole)
    assert len(bench_tables.tables([case()])) == 1
    assert "peer" not in bench_tables.markdown(bench_tables.tables([case()])[0])


def test_adapters_have_a_table_of_their_own(scripts: None) -> None:
    import bench_tables

    ours = {**RUN, "parts": {"q": 0.808, "v": 0.5}}
    theirs = {**RUN, "wall_s": 30.0, "parts": {"q": 0.8, "v": 0.5}}
    extraction = case(method="extract-lora", models=2, runs={"worker": [ours], "peer": [theirs]})
    (table,) = bench_tables.tables([extraction])
    (cells,) = table.rows
    assert cells["peer × worker"] == "15.0" and cells["worst × peer's"] == "1.0100"
    assert (cells["largest error"], cells["peer's"]) == ("0.8080", "0.8000")
    assert (
        bench_tables.tables([extraction, case()])[0].rows == bench_tables.tables([case()])[0].rows
    )


def test_errors_of_an_adapter_are_those_of_its_matrices(scripts: None, tmp_path: Path) -> None:
    import torch
    from bench_lora import errors  # type: ignore[import-not-found]

    from support.adapter_factory import write_adapter
    from support.checkpoint_factory import write_checkpoint

    base, delta = torch.zeros(6, 8), torch.diag(torch.tensor([3.0, 2, 2, 1, 0, 0]))
    after = {"m.weight": torch.cat([delta, base[:, :2]], 1)}
    write_checkpoint(tmp_path / "base", {"m.weight": base})
    write_checkpoint(tmp_path / "tuned", after)
    a, b = torch.zeros(1, 8), torch.zeros(6, 1)
    a[0, 0], b[0, 0] = 1.5, 2
    names = {f"base_model.model.m.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
    adapter = write_adapter(tmp_path / "adapter", {"peft_type": "LORA"}, names)
    folders = (tmp_path / "base", tmp_path / "tuned", adapter)
    assert errors(*folders) == pytest.approx({"m": (9 / 18) ** 0.5})


def test_what_was_measured_is_drawn_and_listed(tmp_path: Path) -> None:
    told = {"machine": {"cores": 2}, "runs": 3, "command": "scripts/bench", "cases": [case()]}
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    words = ["--table", tmp_path / "a.json", tmp_path / "b.json", "--plot", tmp_path / "p.png"]
    environment = {"MERGE_LAUNCH_VENV": sys.prefix, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench", *words],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| ties |") == 2 and "cores 2; median of 3" in done.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_the_figures_beside_it(scripts: None) -> None:
    import bench_tables

    shown = PAGE.partition("<!-- figures -->\n")[2].partition("<!-- end of figures -->")[0]
    # A folder for each machine, whose figures are not to be compared with those of another.
    for folder in (ROOT / "docs/performance").iterdir():
        files = sorted(folder.glob("*.json"))
        cases = [one for file in files for one in json.loads(file.read_text("utf-8"))["cases"]]
        assert cases, folder
        for table in bench_tables.tables(cases):
            assert bench_tables.markdown(table) in shown, f"{table.title}: paste it anew"


def test_the_tests_it_names_are_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)`", PAGE)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_commands_run_at_tiny_size(tmp_path: Path) -> None:
    """As they stand, but for the sizes, one round, and what is the same in all of them."""
    environment = {"MERGE_LAUNCH_VENV": sys.prefix, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for line in COMMANDS:
        words = shlex.split(line)[1:]
        if "--table" not in words:
            words += ["--params", "1e5", "--runs", "1", "--work", str(tmp_path / "work")]
            words += ["--peer", "none", "--shard-size", "1e5"]
        done = subprocess.run(
            [sys.executable, ROOT / "scripts/bench", *words],
            capture_output=True, text=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert ("extract-lora s" if "extract-lora" in words else "merge-worker s") in done.stdout
