"""`stream`: the bits of `merge`, in bounded memory, without a file."""

import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import merge_worker as mw
from merge_worker.checkpoint.reader import Files
from merge_worker.engine.buffers import Pool
from support.checkpoint_factory import write_checkpoint
from support.paths import SOURCES
from support.recipes import one_tensor_models, sparse_file


def recipe(method: str, models: list[Path], **parameters: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": parameters} for model in models[1:]]
    return {"merge_method": method, "base_model": models[0], "models": entries}


def merged(plan: mw.Plan, out: Path) -> dict[str, Tensor]:
    mw.merge(plan, out)
    return {n: t for file in out.glob("*.safetensors") for n, t in load_file(file).items()}


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in ((ours[n], theirs[n]) for n in ours)
    )


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {"weight": 0.5}),
        ("ties", {"weight": 1.0, "density": 0.3}),
        ("dare_ties", {"weight": 1.0, "density": 0.5}),
        ("model_stock", {}),
        ("della", {"weight": 1.0, "density": 0.5, "epsilon": 0.1}),
    ],
)
def test_bits_are_those_of_merge(
    method: str, parameters: dict[str, float], models: list[Path], tmp_path: Path
) -> None:
    plan = mw.plan(recipe(method, models, **parameters), shard_size="5KB", memory="1MiB")
    assert equal(dict(mw.stream(plan)), merged(plan, tmp_path / "out"))


def test_large_tensors_in_many_pieces(tmp_path: Path) -> None:
    models = one_tensor_models(tmp_path, 3_000_000, count=3)
    for method, parameters in (("task_arithmetic", {"weight": 1.0}), ("ties", {"weight": 1.0})):
        made = recipe(method, models, **parameters)
        plan = mw.plan(made, memory="8MiB", threads=3)
        assert equal(dict(mw.stream(plan)), merged(plan, tmp_path / method))


def test_order_is_that_of_the_files(models: list[Path]) -> None:
    plan = mw.average(models, shard_size="5KB")
    assert [name for name, _ in mw.stream(plan)] == list(plan.tensors)


def test_another_dtype_is_rounded_once(models: list[Path], tmp_path: Path) -> None:
    wide = mw.average(models, dtype="float32")
    assert equal(
        dict(mw.stream(mw.average(models), dtype="float32")), merged(wide, tmp_path / "out")
    )


def test_tensors_take_gradients(models: list[Path]) -> None:
    tensor = dict(mw.stream(mw.average(models)))["norm.weight"]
    assert not tensor.is_inference() and tensor.requires_grad_().sum().backward() is None


def test_memory_is_the_plans_and_one_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers of the lanes stay within the bound, and only one tensor is filled at a time."""
    tensors = {f"layers.{i}.weight": torch.randn(300, 1000).bfloat16() for i in range(6)}
    models = [write_checkpoint(tmp_path / f"m{n}", tensors) for n in range(2)]
    plan = mw.average(models, memory="2MiB", threads=4)
    pools: list[Pool] = []
    real_init = Pool.__init__

    def init(pool: Pool, *words: Any, **more: Any) -> None:
        real_init(pool, *words, **more)
        pools.append(pool)

    largest, made, most = 0, list[weakref.ref[Tensor]](), 0
    real_empty = torch.empty

    def empty(*shape: Any, **more: Any) -> Tensor:
        nonlocal most
        tensor = real_empty(*shape, **more)
        if tensor.shape == (300, 1000):
            made.append(weakref.ref(tensor))
            most = max(most, sum(other() is not None for other in made))
        return tensor

    monkeypatch.setattr(Pool, "__init__", init)
    monkeypatch.setattr(torch, "empty", empty)
    for _, tensor in mw.stream(plan):
        largest = max(largest, sum(pool.size_with({}) for pool in list(pools)))
        del tensor
    assert len(made) == 6 and most == 1 and 0 < largest <= plan.memory


@pytest.mark.slow
def test_memory_of_the_process(tmp_path: Path) -> None:
    """A stream takes the plan's memory and one tensor, measured by the system."""
    count, size = 8, 64 << 20
    for name in ("a", "b"):
        shape = (size >> 11, 1 << 10)
        tensors = {f"layers.{i}.weight": (shape, "BF16", size) for i in range(count)}
        sparse_file(tmp_path / name / "model.safetensors", tensors)
    code = (
        "import resource, merge_worker as mw\n"
        "def peak():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10\n"
        "plan = mw.average(['a', 'b'], memory='24MiB', threads=2)\n"
        "import torch, merge_worker.engine.tensor_stream\n"
        "before = peak()\n"
        "for name, tensor in mw.stream(plan):\n"
        "    del tensor\n"
        "print(peak() - before, plan.memory)\n"
    )
    env = {"PYTHONPATH": SOURCES, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, bound = map(int, done.stdout.split())
    assert grown <= bound + size + (24 << 20), "stacks of threads, and what torch sets up"


@pytest.mark.parametrize("closes", [True, False])
def test_a_reader_that_ends_early(models: list[Path], closes: bool) -> None:
    threads = set(threading.enumerate())
    tensors = mw.stream(mw.average(models))
    next(tensors)
    if closes:
        tensors.close()  # type: ignore[attr-defined]
    del tensors
    assert threads >= set(threading.enumerate())


def test_errors_reach_the_reader(tmp_path: Path) -> None:
    bad = {"a": torch.ones(4), "b": torch.tensor([float("nan")] * 4)}
    models = [write_checkpoint(tmp_path / n, bad) for n in "xy"]
    plan = mw.average(models)
    threads = set(threading.enumerate())
    with pytest.raises(mw.errors.ResultError, match="'b': 4 values of the result are NaN"):
        list(mw.stream(plan))
    assert threads >= set(threading.enumerate())
    assert len(list(mw.stream(plan, allow_nonfinite=True))) == 2
    (tmp_path / "x" / "model.safetensors").write_bytes(b"")
    with pytest.raises(mw.errors.InputError):
        list(mw.stream(plan, allow_nonfinite=True))


def test_a_stored_intermediate_result_is_refused(models: list[Path]) -> None:
    names = ", ".join(map(str, models))
    text = (
        f"name: near\nmerge_method: model_stock\nbase_model: {models[0]}\nmodels: [{names}]\n---\n"
        f"merge_method: linear\nmodels: [near, {models[0]}]\nparameters: {{weight: 1}}\n"
    )
    with pytest.raises(mw.errors.UsageError, match="the intermediate result 'near' must be stored"):
        mw.stream(mw.plan(text))
    lazy = text.replace("model_stock", "linear").replace("---", "parameters: {weight: 1}\n---")
    assert len(dict(mw.stream(mw.plan(lazy)))) == 8


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the bytes of every read of an input."""
    counts: list[int] = []
    real = Files.read

    def read(files: Files, path: str, offset: int, buffer: memoryview, *more: Any) -> None:
        counts.append(len(buffer))
        real(files, path, offset, buffer, *more)

    monkeypatch.setattr(Files, "read", read)
    yield counts


def test_five_recipes_read_the_inputs_once_and_write_nothing(
    models: list[Path], tmp_path: Path, bytes_read: list[int]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    weights = (0.1, 0.3, 0.5, 0.7, 0.9)
    plans = [mw.plan(recipe("task_arithmetic", models, weight=w)) for w in weights]
    results: list[dict[str, Tensor]] = [{} for _ in plans]
    for name, tensors in mw.stream(plans):
        for result, tensor in zip(results, tensors, strict=True):
            assert tensor is not None
            result[name] = tensor
    assert sum(bytes_read) == plans[0].reads
    assert sorted(tmp_path.rglob("*")) == before
    for plan, result in zip(plans, results, strict=True):
        assert equal(result, dict(mw.stream(plan)))


def test_recipes_of_other_tensors_share_a_pass(models: list[Path]) -> None:
    """A tensor that one merge lacks is None there; methods that read twice join in."""
    short = dict(recipe("ties", models, weight=1.0, density=0.5))
    plans = [mw.average(models), mw.plan(short)]
    for number, plan in enumerate(plans):
        alone = dict(mw.stream(plan))
        assert equal({n: t[number] for n, t in mw.stream(plans) if t[number] is not None}, alone)
