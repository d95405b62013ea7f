"""Runs of merge-worker for its tests, and odd checkpoints written byte by byte."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.cli import main
from merge_worker.dtypes import BY_NAME
from merge_worker.engine.stream import Engine
from merge_worker.engine.work import Work, join_steps, share
from merge_worker.output.commit import finish
from merge_worker.output.store import PartialOutput
from merge_worker.output.target import State, Target
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.planning.step import Grid, Step
from merge_worker.recipe import parse
from merge_worker.recipe.shorthand import direct_recipe
from merge_worker.system.progress import Progress
from merge_worker.system.ranks import Rank
from merge_worker.tensors.source import StoredTensor
from support.checkpoint_factory import write_checkpoint


def run(*words: object) -> int:
    """Run merge-worker with these arguments in this process; returns the exit code."""
    return main([str(word) for word in words])


def average(out: Path, models: Sequence[Path], *options: object) -> int:
    return run("average", out, *models, "--progress", "off", *options)


def plan_of(models: Sequence[Path], method: str = "linear", **options: Any) -> Plan:
    text = direct_recipe([str(model) for model in models], method=method)
    return make_plan(parse(text), PlanOptions(**options))


def some_tensors(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Return a tensor of each kind: matrix, vector, scalar, empty, integers, booleans."""
    generator = torch.Generator().manual_seed(seed)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "embed.weight": floats(64, 48),
        "layers.0.weight": floats(48, 33),
        "layers.1.weight": floats(48, 33),
        "norm.weight": floats(48),
        "scale": floats(),
        "empty": floats(0, 3),
        "position_ids": torch.arange(9),
        "mask": torch.tensor([True, False, True]),
    }


def some_models(
    folder: Path, count: int = 3, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> list[Path]:
    options.setdefault("config", {"model_type": "none", "torch_dtype": "bfloat16"})
    return [
        write_checkpoint(folder / f"m{seed}", some_tensors(seed, dtype), **options)
        for seed in range(count)
    ]


def one_tensor_models(
    folder: Path, elements: int, count: int = 2, dtype: torch.dtype = torch.bfloat16
) -> list[Path]:
    """Write models of one matrix with many blocks, between some small tensors."""
    models = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        big = torch.randn(elements // 1000, 1000, generator=generator).to(dtype)
        small = {f"small.{i}": torch.randn(50, generator=generator).to(dtype) for i in range(4)}
        models.append(write_checkpoint(folder / f"big{seed}", {"big": big, **small}))
    return models


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file of this header and data; `length` overrides the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def entry(shape: Sequence[int], first: int, last: int, dtype: str = "F32") -> dict[str, Any]:
    """Return one tensor's entry of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def sparse_file(path: Path, tensors: Mapping[str, tuple[Sequence[int], str, int]]) -> None:
    """Write a valid header with data that are one hole; tensors are (shape, dtype, bytes)."""
    header, offset = {}, 0
    for name, (shape, dtype, size) in tensors.items():
        header[name] = entry(shape, offset, offset + size, dtype)
        offset += size
    raw_file(path, header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + offset)


def step(count: int, block: int, dtypes: tuple[str, ...], reads: int = 1, scratch: int = 0) -> Step:
    """Return a step of a plan: a vector, copied or merged from files that do not exist."""
    sources = tuple(
        StoredTensor("x", BY_NAME[d], (count,), "f", 8, count * BY_NAME[d].bytes) for d in dtypes
    )
    fields: dict[str, Any] = {
        "name": f"t{count}",
        "dtype": sources[0].dtype,
        "shape": (count,),
        "sources": sources,
        "task": None,
        "method": None,
        "grid": Grid(count, block, None),
        "reads": reads,
        "scratch": scratch,
        "shard": 0,
        "offset": 8,
    }
    return Step(**fields)


def engine_for(plan: Plan, store: PartialOutput, **options: Any) -> Engine:
    """Return the engine of one merge, on the CPU, without progress."""
    progress = Progress("off", plan.output_bytes, "")
    return Engine([store], plan.memory, progress, [torch.device("cpu")], **options)


def work_of(plan: Plan, store: PartialOutput) -> list[Work]:
    """Return all unfinished work of the store."""
    return join_steps([share(plan.steps, Rank(), store.done())])


def stream_into(out: Path, plan: Plan, *, stop_after: int | None = None, **options: Any) -> Engine:
    """Stream the rest of a plan without a command around it; stops after `pieces` pieces."""
    store = PartialOutput(out, plan)
    store.open_or_resume()
    store.read_journals()
    store.open()
    engine = engine_for(plan, store, **options)
    write, written = store.write, 0

    def counted(*words: Any) -> None:
        nonlocal written
        write(*words)
        written += 1
        if written == stop_after:
            engine.stop.set("enough")

    store.write = counted  # type: ignore[method-assign]
    try:
        store.drop_damaged(2)
        engine.run(work_of(plan, store))
    finally:
        store.close()
    return engine


def finish_into(out: Path, plan: Plan) -> None:
    """Commit a streamed merge."""
    store = PartialOutput(out, plan)
    store.read_journals()
    assert store.complete()
    finish(store, Target(State.FRESH), {}, False)


def manifest(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((out / "merge_manifest.json").read_text("utf-8"))
    return value


def digest(out: Path) -> dict[str, int]:
    """Return checksums of all files of a result except the manifest, which has timings."""
    return {
        path.relative_to(out).as_posix(): zlib.crc32(path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("merge_manifest.json", "README.md")
    }


def shards_of(out: Path) -> dict[str, int]:
    return {name: crc for name, crc in digest(out).items() if name.endswith(".safetensors")}


def after_a_third(patch: pytest.MonkeyPatch, count: int, act: Callable[[], object]) -> None:
    """Call `act` once when a third of a result of so many bytes is written."""
    real, waits = Progress.wrote, [act]

    def wrote(progress: Progress, written: int, *which: int) -> None:
        real(progress, written, *which)
        if progress.bytes_out > count // 3 and waits:
            waits.pop()()

    patch.setattr(Progress, "wrote", wrote)
