"""TSV-M and Iso-C through the engine: stacks of experts, little memory, time that is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_worker import methods
from merge_worker.dtypes import from_torch_name
from merge_worker.method import Cost, Task, matrix_shape
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.method_driver import make_task, merge
from support.paths import ROOT
from support.recipes import run

BOTH = pytest.mark.parametrize("method", ["tsvm", "iso_c"])
SHAPES = {
    "embed.weight": (64, 24),
    "layers.0.experts.gate_up": (5, 24, 32),
    "layers.0.conv.weight": (24, 1, 4),
    "layers.0.q.weight": (24, 24),
    "layers.0.q.bias": (24,),
    "layers.1.down.weight": (24, 48),
    "norm.weight": (24,),
}


def tensors(seed: int, size: float = 0.02) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=noise) * size for n, s in SHAPES.items()}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and two fine-tunes of it, in bfloat16."""
    base = {n: x.bfloat16() for n, x in tensors(0).items()}
    folders = [write_checkpoint(tmp_path / "base", base)]
    for seed in (1, 2):
        tuned = {n: (base[n] + x).bfloat16() for n, x in tensors(seed, 0.005).items()}
        folders.append(write_checkpoint(tmp_path / f"m{seed}", tuned))
    return folders


def recipe(folder: Path, method: str, models: list[Path], **parameters: object) -> Path:
    path = folder / "recipe.yml"
    text = {
        "merge_method": method,
        "base_model": str(models[0]),
        "models": [{"model": str(model)} for model in models[1:]],
        "parameters": parameters,
    }
    path.write_text(json.dumps(text))
    return path


@BOTH
def test_engine(tmp_path: Path, models: list[Path], method: str) -> None:
    """Any threads, memory and ranks: the same bytes, and those of the method by itself."""
    path = recipe(tmp_path, method, models, alpha=0.7)
    results = []
    for number, options in enumerate(([], ["--threads", 1, "--memory", "64KiB"], ["--threads", 4])):
        out = tmp_path / f"out{number}"
        assert run("merge", path, out, "--progress", "off", *options) == 0
        results.append(read_tensors(out))
    base, *tuned = [read_tensors(model) for model in models]
    for name in SHAPES:
        want = merge(method, [model[name] for model in tuned], base[name], alpha=0.7)
        for result in results:
            assert result[name].equal(want), name


@BOTH
def test_ranks_share_experts(
    tmp_path: Path, models: list[Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, method, models)
    assert run("merge", path, tmp_path / "alone", "--progress", "off") == 0
    for rank in (1, 2, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        words = ("--progress", "off", "--ranks", "auto:0s")
        assert run("merge", path, tmp_path / "three", *words) == (0 if rank == 0 else 75)
    alone, three = read_tensors(tmp_path / "alone"), read_tensors(tmp_path / "three")
    assert all(alone[name].equal(three[name]) for name in SHAPES)


def test_matrices() -> None:
    assert matrix_shape((3, 5)) == (3, 5)
    assert matrix_shape((64, 8, 9)) == (8, 9)
    assert [matrix_shape(s) for s in ((), (3,), (64, 1, 4), (64, 9, 3), (2, 9, 9, 9))] == [None] * 5


@BOTH
def test_memory_is_bounded_by_one_expert(models: list[Path], method: str, tmp_path: Path) -> None:
    plan = make_plan(parse(recipe(tmp_path, method, models).read_text()), PlanOptions())
    step = next(s for s in plan.steps if s.name == "layers.0.experts.gate_up")
    assert (step.grid.blocks, step.grid.block) == (5, 24 * 32)
    assert step.flops > 0
    assert all(s.flops == 0 for s in plan.steps if s.name.endswith("bias"))
    assert plan.warnings == ()


def task(method: str, shape: tuple[int, ...], models: int, dtype: str = "bfloat16") -> Task:
    return Task("t", shape, from_torch_name(dtype), models, True, {"alpha": 1.0}, 0)


@BOTH
def test_effort(method: str) -> None:
    chosen = methods.get(method)

    def cost(*shape: int) -> Cost:
        cost = chosen.algorithm.cost(chosen, task(method, shape, 3))
        assert cost is not None
        return cost

    small, large = cost(512, 512), cost(1024, 1024)
    assert large.flops / small.flops == pytest.approx(8, rel=0.01)
    stack = cost(7, 512, 512)
    assert (stack.flops, stack.scratch) == (7 * small.flops, small.scratch)
    assert cost(512).flops == 0
    assert cost(0, 512).flops == 0


@BOTH
@pytest.mark.parametrize("shape", [(900, 900), (20000, 200)], ids=str)
def test_scratch_is_what_is_declared(method: str, shape: tuple[int, int]) -> None:
    """Peak of the process, since eigensolvers allocate on their own."""
    models = [torch.zeros(shape, dtype=torch.bfloat16)] * 3
    chosen = methods.get(method)
    effort = chosen.algorithm.cost(chosen, make_task(chosen, models, models[0], {}))
    assert effort is not None
    code = f"""
import resource, sys
sys.path[:0] = {[str(ROOT / "tests"), str(ROOT / "worker")]}
import torch
from support.method_driver import merge
torch.set_num_threads(1)
torch.manual_seed(0)
merge("{method}", [torch.randn(60, 50)] * 2, torch.randn(60, 50))
base, *models = [torch.empty({shape}, dtype=torch.bfloat16).normal_(0, .02) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge("{method}", models, base)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    elements = shape[0] * shape[1]
    assert int(child.stdout) <= (effort.scratch + 2) * elements + (16 << 20)


def test_hours_are_told_beforehand(tmp_path: Path) -> None:
    """In headers only: 32 layers of 8192 x 8192, in files that are one hole."""
    from support.recipes import sparse_file

    folders = []
    for name in ("base", "a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        size = 8192 * 8192 * 2
        sparse_file(
            folder / "model.safetensors",
            {f"layers.{i}.w": ((8192, 8192), "BF16", size) for i in range(8)},
        )
        folders.append(folder)
    for method in ("tsvm", "iso_c"):
        text = recipe(tmp_path, method, folders).read_text()
        (warning,) = make_plan(parse(text), PlanOptions(threads=4, memory_bytes=1 << 30)).warnings
        assert f"{method} computes" in warning
        assert "about " in warning and " on 1 processor core;" in warning
        assert "lets 4 threads work, not just 1" in warning
    text = recipe(tmp_path, "task_arithmetic", folders, weight=1).read_text()
    assert make_plan(parse(text)).warnings == ()


@BOTH
def test_tasks_trained_apart_are_both_learnt(method: str) -> None:
    """Two fine-tunes of one layer by gradient descent, each on inputs and targets of its own."""
    noise = torch.Generator().manual_seed(0)
    start = torch.randn(24, 32, generator=noise) * 0.1
    tasks = []
    for number in range(2):
        inputs = torch.randn(64, 32, generator=noise) * 0.1
        inputs[:, number * 16 : (number + 1) * 16] += torch.randn(64, 16, generator=noise)
        tasks.append((inputs, inputs @ torch.randn(32, 24, generator=noise) * 0.3))

    def loss(weight: Tensor) -> float:
        return sum(float((x @ weight.mT - y).square().mean()) for x, y in tasks) / 2

    tuned = []
    for inputs, targets in tasks:
        weight = start.clone()
        for _ in range(300):
            error = inputs @ weight.mT - targets
            weight -= 0.01 * error.mT @ inputs / 8
        tuned.append(weight)
    merged = merge(method, tuned, start)
    assert loss(merged) < 0.8 * min(loss(weight) for weight in (*tuned, start))


@BOTH
@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accelerators_prefer_products(
    method: str, rank: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of accelerators, on the processor: the same result, for deltas of low rank too."""
    noise = torch.Generator().manual_seed(0)
    base = (torch.randn(90, 60, generator=noise) * 0.02).to(dtype)
    deltas = [torch.randn(90, 60, generator=noise) * 0.01 for _ in range(2)]
    if rank:
        deltas = [d[:, :rank] @ torch.randn(rank, 60, generator=noise) for d in deltas]
    models = [(base + delta).to(dtype) for delta in deltas]
    want = merge(method, models, base).double()
    for module in ("algorithms.spectral", "methods.iso_c"):
        monkeypatch.setattr(f"merge_worker.{module}.prefers_products", lambda matrix: True)
    got = merge(method, models, base).double()
    # A step of bfloat16 where a value lies halfway, which is rare.
    assert torch.allclose(got, want, rtol=2.0**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert dtype != torch.bfloat16 or float((got != want).double().mean()) < 0.01


@BOTH
def test_nan_names_its_file(
    tmp_path: Path, models: list[Path], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = read_tensors(models[1])
    broken["layers.0.q.weight"][2, 3] = float("nan")
    models[1] = write_checkpoint(tmp_path / "broken", broken)
    assert (
        run("merge", recipe(tmp_path, method, models), tmp_path / "out", "--progress", "off") == 5
    )
    assert "broken" in (error := capsys.readouterr().err) and "1 NaN or Inf" in error
