"""A method with two earlier passes, to test the engine with; not for users.

out = (mean of the models - its mean over all elements) / its largest distance from that mean.
Sums are taken in index order, so that a block out of place changes the last bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge_worker import methods
from merge_worker.method import (
    Algorithm,
    Block,
    Granularity,
    MergePass,
    Method,
    StatisticsPass,
    Task,
    merge_method,
)

Partial = tuple[int, int, float]


def mean_of(block: Block) -> Tensor:
    shape = block.tensors[0].shape
    total = block.scratch.take("sum", shape.numel(), "float64").view(shape).zero_()
    term = block.scratch.take("term", shape.numel(), "float64").view(shape)
    for values in block.tensors:
        total.add_(term.copy_(values))
    return total.mul_(1 / len(block.tensors))


def in_order(partials: Sequence[Partial], task: Task) -> list[float]:
    """Return the values, after asserting that every element was seen once and in order."""
    position = 0
    for start, count, _ in partials:
        assert start == position, (start, position)
        position += count
    assert position == torch.Size(task.shape).numel()
    return [value for _, _, value in partials]


class Mean(StatisticsPass):
    def __init__(self, task: Task) -> None:
        self.task = task

    def collect(self, block: Block) -> Partial:
        values = mean_of(block)
        return block.start, values.numel(), float(values.sum())

    def next_pass(self, partials: Sequence[Partial]) -> StatisticsPass | MergePass:
        total = 0.0
        for value in in_order(partials, self.task):
            total += value
        return Spread(self.task, total / torch.Size(self.task.shape).numel())


class Spread(StatisticsPass):
    def __init__(self, task: Task, mean: float) -> None:
        self.task, self.mean = task, mean

    def collect(self, block: Block) -> Partial:
        values = mean_of(block).sub_(self.mean).abs_()
        return block.start, values.numel(), float(values.max())

    def next_pass(self, partials: Sequence[Partial]) -> StatisticsPass | MergePass:
        return Scaled(self.mean, max(in_order(partials, self.task)))


class Scaled(MergePass):
    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread = mean, spread

    def merge(self, block: Block, out: Tensor) -> None:
        out.copy_(mean_of(block).sub_(self.mean).div_(self.spread or 1.0))


class Centred(Algorithm):
    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity(values["cut"])

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 3

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 16

    def check(self, method: Method, task: Task) -> None:
        pass

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        return Mean(task)


@merge_method(Centred(), reference="https://example.org")
def centered(*, cut: str = "element") -> None:
    """Compute (mean - its mean) / its largest distance from it."""


def register() -> tuple[Any, Any]:
    """Register the method with the worker; return the state that `restore` takes."""
    names, get = methods.names, methods.get
    # mypy: tests may replace functions of a module
    methods.names = lambda: tuple(sorted((*names(), "centered")))  # type: ignore[assignment]
    methods.get = lambda name: centered if name == "centered" else get(name)  # type: ignore[assignment]
    return names, get


def restore(before: tuple[Any, Any]) -> None:
    methods.names, methods.get = before
