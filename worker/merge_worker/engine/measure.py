"""Figures of importance, measured once before the merge that needs them.

Scales and floors depend on whole tensors, and the scale of a model on all of them, so that every
importance source is read once beforehand: largest value, sum, norm, and a sample.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.reader import Files
from ..errors import InputError
from ..messages import printable
from ..planning.plan import Plan
from ..system.signals import StopFlag
from ..tensors.importance import Figures, SpreadTensor
from ..tensors.source import TensorSource, stored_inputs
from .lane import Lane

PART = 1 << 18
"""Elements that are read and summed at a time."""

SAMPLES = 256
"""Values of each tensor in its sample."""


class _Place(NamedTuple):
    label: str
    source: TensorSource
    figures: Figures


def measure_importance(
    plans: Sequence[Plan], files: Files, threads: int, stop: StopFlag
) -> list[str]:
    """Measure all importance that the plans read, and return warnings on what it amounts to.

    Raises InputError for values that are negative or not finite, and for a model with zeros only.
    """
    every = [inner for plan in plans for inner in (*plan.lazy, plan)]
    places = [place for plan in every for place in _places(plan)]
    todo = [place for place in places if not place.figures.measured]
    if todo:
        torch.set_num_threads(1)  # those of a pool, once begun, would be in the way of a fork
        lanes = _Lanes(files)
        with torch.inference_mode(), ThreadPoolExecutor(max(1, threads)) as pool:
            faults = list(pool.map(lambda place: _measure(place, lanes.get(), stop), todo))
        if stop.is_set():
            raise stop.error(0)
        if found := [fault for fault in faults if fault]:
            raise InputError("\n".join(found[:3]))
        for plan in every:
            _refuse_zeros(plan)
    return [line for plan in every for line in _floors(plan)] if todo else []


class _Lanes(threading.local):
    """A lane of each thread."""

    def __init__(self, files: Files) -> None:
        self.lane = Lane(torch.device("cpu"), files)

    def get(self) -> Lane:
        return self.lane


def _places(plan: Plan) -> Iterator[_Place]:
    for step in plan.steps:
        for entry in step.task.importance if step.task else ():
            if entry is not None:
                yield _Place(entry.model.label, step.sources[entry.index], entry.figures)


def _measure(place: _Place, lane: Lane, stop: StopFlag) -> str:
    """Fill the figures of one tensor. Return what is wrong with it, else an empty text."""
    label, source, figures = place
    # Numbers of channels stand for all elements that they are spread to.
    inner = source.inputs[0] if isinstance(source, SpreadTensor) else source
    times = source.count // max(1, inner.count)
    stored = next(stored_inputs(source), None)
    where, name = f"{stored.file if stored else label}: ", printable(source.name)
    largest, total, norms = 0.0, list[float](), list[float]()
    samples: list[Tensor] = []
    step = max(1, inner.count // SAMPLES)
    for start in range(0, inner.count, PART):
        if stop.is_set():
            return ""
        values = lane.read(inner, start, min(start + PART, inner.count), "in0")
        low, high = (float(x) for x in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"{where}the importance of '{name}' is not finite (NaN or Inf)"
        if low < 0:
            return f"{where}the importance of '{name}' is negative ({low:.3g})"
        largest = max(largest, high)
        wide = lane.take("wide", values.numel(), "float64").copy_(values)
        total.append(float(wide.sum()))
        norms.append(float(torch.linalg.vector_norm(wide)))
        samples.append(values[-start % step :: step].double().clone())
    figures.total = math.fsum(total) * times
    figures.norm = math.hypot(*norms) * math.sqrt(times)
    figures.count, figures.largest = source.count, largest
    figures.sample = torch.cat(samples) if samples else torch.zeros(0, dtype=torch.float64)
    return ""


def _refuse_zeros(plan: Plan) -> None:
    """Raise InputError for a model whose importance is 0 in all tensors."""
    entries = (e for step in plan.steps if step.task for e in step.task.importance if e)
    for model in {id(entry.model): entry.model for entry in entries}.values():
        counts = [figures for figures in model.tensors if figures.measured]
        if counts and not any(figures.largest for figures in counts):
            raise InputError(
                f"{model.label}: its importance is 0 in every tensor, so nothing was measured; "
                f"give another file, or none"
            )


def _floors(plan: Plan) -> Iterator[str]:
    """Warn if the floor of importance decides in more than half of the elements."""
    elements, drowned = 0, 0.0
    for step in plan.steps:
        if step.task is not None and step.method is not None and step.task.importance:
            share = step.method.algorithm.floor_share(step.method, step.task)
            if share is not None:
                elements += step.grid.count
                drowned += share * step.grid.count
    if elements and drowned > elements / 2:
        yield (
            f"{plan.recipe.where}: the floor of {plan.method.name} exceeds half of the importance "
            f"in {100 * drowned / elements:.0f} % of the elements, which are nearly a plain mean; "
            f"give a smaller {plan.method.algorithm.floor_name}"
        )
