"""Runs merge methods on tensors block by block as the engine does, without files or threads."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from merge_worker import methods
from merge_worker.algorithms.modifiers import begin, scratch_bytes
from merge_worker.dtypes import from_torch_name
from merge_worker.engine.buffers import Pool
from merge_worker.method import (
    BaseRole,
    Block,
    Method,
    StatisticsPass,
    Task,
    working_dtype,
)
from merge_worker.planning.step import CPU_BLOCK, Grid, block_grid
from merge_worker.tensors.importance import Figures, Importance, ModelFigures


def merge(
    name: str,
    models: Sequence[Tensor],
    base: Tensor | None = None,
    *,
    block: int = CPU_BLOCK,
    dtype: torch.dtype | None = None,
    tensor: str = "t",
    seed: int = 0,
    **values: object,
) -> Tensor:
    """Merge one tensor by the method `name`, into `dtype` (default: the base or first model's).

    `values` are parameters as a recipe gives them: a list or one number for those per model,
    `lambda_` for `lambda`. Defaults fill the rest.
    """
    method = methods.get(name)
    if base is not None and method.base is BaseRole.IGNORED:
        models, base = [*models, base], None
    task = make_task(method, models, base, values, dtype)
    task = replace(task, name=tensor, seed=seed)
    return run(method, task, [*models, *([] if base is None else [base])], block)


def merge_by_importance(
    name: str,
    models: Sequence[Tensor],
    importance: Sequence[Tensor | None],
    base: Tensor | None = None,
    *,
    block: int = CPU_BLOCK,
    dtype: torch.dtype | None = None,
    tensor: str = "t",
    **values: object,
) -> Tensor:
    """Merge one tensor of models with importance; that of the base stands last, if it has any."""
    method = methods.get(name)
    task = replace(make_task(method, models, base, values, dtype), name=tensor)
    sources = [*models, *([] if base is None else [base])]
    entries: list[Importance | None] = []
    for number, values_of_model in enumerate(importance):
        if values_of_model is None:
            entries.append(None)
            continue
        figures = figures_of(values_of_model)
        model = ModelFigures(f"model {number}", [figures])
        entries.append(Importance(len(sources), figures, model))
        sources.append(values_of_model)
    padded = [*entries, *([None] * (len(models) + (base is not None) - len(entries)))]
    return run(method, replace(task, importance=tuple(padded)), sources, block)


def figures_of(values: Tensor) -> Figures:
    """Return the figures of an importance tensor."""
    wide = values.double().view(-1)
    largest, norm = float(wide.max()) if len(wide) else 0.0, float(torch.linalg.vector_norm(wide))
    return Figures(largest, float(wide.sum()), norm, len(wide), wide)


def make_task(
    method: Method,
    models: Sequence[Tensor],
    base: Tensor | None,
    values: dict[str, object],
    dtype: torch.dtype | None = None,
) -> Task:
    """Return the task of the tensor `t`; removes from `values` the parameters that it reads."""
    first = models[0] if base is None else base
    out = from_torch_name(str(dtype or first.dtype))
    resolved: dict[str, object] = {}
    for parameter in method.parameters:
        key = parameter.name + "_" if parameter.name == "lambda" else parameter.name
        value = values.pop(key, parameter.default)
        assert value is not None, f"{method.name} needs {parameter.name}"
        if parameter.per_model:
            value = tuple(value) if isinstance(value, list | tuple) else (value,) * len(models)
            assert len(value) == len(models), f"one {parameter.name} per model"
        resolved[parameter.name] = value
    assert not values, f"{method.name} has no parameters {list(values)}"
    shape, work = tuple(first.shape), working_dtype(out, resolved)
    return Task("t", shape, out, len(models), base is not None, resolved, 0, work)


def run(method: Method, task: Task, sources: Sequence[Tensor], block: int) -> Tensor:
    """Run all passes of a method over the grid that the engine would use."""
    method.algorithm.check(method, task)
    granularity = method.algorithm.granularity(method, task.values)
    places = block_grid(task.shape, granularity, block)
    scratch = Meter()
    out = torch.empty(places.count, dtype=getattr(torch, task.dtype.torch_name))
    flat = [source.contiguous().view(-1) for source in sources]
    with torch.inference_mode():
        current, passes = begin(method, task), 1
        while isinstance(current, StatisticsPass):
            current = current.next_pass([current.collect(b) for b in blocks(places, flat, scratch)])
            passes += 1
        for item in blocks(places, flat, scratch):
            here = out[item.start : item.start + item.tensors[0].numel()]
            current.merge(item, here.view(item.tensors[0].shape))
    if places.blocks:
        reads = method.algorithm.reads(method, task.values)
        reads += 2 * getattr(method.algorithm, "lengths", False)  # where vectors cancel
        reads += task.balance
        assert passes <= reads, "more passes than declared"
        per_element = method.algorithm.scratch_bytes(method, len(sources))
        per_element += scratch_bytes(task, len(sources))
        allowed = per_element * min(places.block, places.count)
        assert scratch.total <= allowed + 4096, f"scratch: {scratch.total} of {allowed} bytes"
    return out.view(task.shape)


def values_of(method: Method, models: int) -> dict[str, object]:
    """Return parameters with which every method has an effect: density 0.5, unequal weights."""
    given: dict[str, object] = {}
    for parameter in method.parameters:
        if parameter.name == "density":
            given["density"] = 0.5
        elif parameter.required and parameter.per_model:
            given[parameter.name] = [0.4, 0.7, 0.2][:models]
        elif parameter.required:
            given[parameter.name] = parameter.type(1) if parameter.type is int else 0.4
    return given


def models_of(method: Method) -> int:
    return max(1, method.min_models, min(3, method.max_models or 3))


class Meter(Pool):
    """A scratch pool that fills returned memory with NaN and counts its bytes."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.sizes: dict[str, int] = {}

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        taken = super().take(slot, count, dtype)
        self.sizes[slot] = max(self.sizes.get(slot, 0), taken.nbytes)
        return taken.fill_(float("nan")) if taken.is_floating_point() else taken


def blocks(places: Grid, flat: Sequence[Tensor], scratch: Pool) -> Iterator[Block]:
    for number in range(places.blocks):
        start, stop = places.span(number, 1)
        views = [values[start:stop] for values in flat]
        if places.row is not None:
            views = [view.view(-1, places.row) for view in views]
        yield Block(views, start, scratch)
