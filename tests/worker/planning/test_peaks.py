"""The memory that `check` names, against the peak of the process that merges."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merge_worker import methods
from merge_worker.method import BaseRole, Method
from support.checkpoint_factory import write_checkpoint
from support.method_driver import values_of
from support.recipes import run

MIB = 1 << 20
SLACK = 16 * MIB
"""What the interpreter, torch and the allocator take more for a large merge than for a tiny one."""

USUAL = [("model_stock", 24), ("karcher", 24), ("ties", 8), ("della", 8), ("sce", 8), ("nde", 8)]
COUNTS = [2, 3, 5, 10, 20, 40, 100]
DISTINCT = 6
MEASURE = (
    "import sys\n"
    "from merge_worker.cli import main\n"
    "code = main(sys.argv[1:])\n"
    # Not ru_maxrss, which begins with that of the parent.
    "lines = [line.split() for line in open('/proc/self/status')]\n"
    "print('PEAK', code, *(words[1] for words in lines if words[0] == 'VmHWM:'))\n"
)


def cases(every: bool) -> list[tuple[str, int]]:
    """Return methods and numbers of models: a few, or all that a method takes up to a hundred."""
    if not every:
        return USUAL
    return [
        (name, count)
        for name in methods.names()
        for count in COUNTS
        if methods.get(name).min_models <= count <= (methods.get(name).max_models or count)
    ] or USUAL


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "count" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-peak")
        metafunc.parametrize(("name", "count"), cases(every))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Some different models: one of them large, the other tiny."""
    folder, noise = tmp_path_factory.mktemp("peaks"), torch.Generator().manual_seed(0)
    found: dict[str, list[Path]] = {}
    for size, shape in (("large", (2000, 1500)), ("tiny", (8, 8))):
        base = torch.randn(shape, generator=noise) * 0.02
        found[size] = [
            write_checkpoint(
                folder / f"{size}{i}",
                {"w": (base + torch.randn(shape, generator=noise) * 1e-3).bfloat16()},
            )
            for i in range(DISTINCT)
        ]
    return found


def recipe(folder: Path, models: list[Path], method: Method, count: int) -> Path:
    """Write a recipe of `count` models, which share the files of a few."""
    paths = []
    for number in range(count + 1):
        path = folder / f"{models[0].name}-{number}"
        path.mkdir(parents=True)
        for file in models[number % DISTINCT].iterdir():
            os.link(file, path / file.name)
        paths.append(path)
    values = values_of(method, 1)
    values = {n: v[0] if isinstance(v, list) else v for n, v in values.items()}
    text: dict[str, object] = {"merge_method": method.name, "parameters": values}
    if method.base is not BaseRole.IGNORED:
        text["base_model"] = str(paths[0])
    text["models"] = [{"model": str(path)} for path in paths[1:]]
    file = folder / f"{models[0].name}.yml"
    file.write_text(json.dumps(text))
    return file


def peak(file: Path, *options: str) -> int:
    out = file.with_name("-".join([file.stem, "out", *options]))
    command = [sys.executable, "-c", MEASURE, "merge", str(file), str(out), "--progress", "off"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    words = done.stdout.rpartition("PEAK")[2].split()
    assert words[0] == "0", done.stderr
    return int(words[1]) << 10


@pytest.mark.slow
def test_no_merge_takes_more_than_check_says(
    name: str,
    count: int,
    tmp_path: Path,
    files: dict[str, list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = methods.get(name)
    large, tiny = (recipe(tmp_path, files[size], method, count) for size in ("large", "tiny"))
    idle = peak(tiny, "--threads", "1")
    for memory in ((), ("--memory", "16MiB")):
        capsys.readouterr()
        assert run("check", large, "--json", "--threads", "1", *memory) == 0
        bound = json.loads(capsys.readouterr().out)["memory"]["bound_bytes"]
        more = peak(large, "--threads", "1", *memory) - idle
        with capsys.disabled():
            print(f"\n{name} of {count}: {more / MIB:.0f} MiB, said {bound / MIB:.0f} MiB")
        assert more <= bound + SLACK
