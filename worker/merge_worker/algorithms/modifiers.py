"""Modifiers of methods: LiNeS and AIM on the result, balanced task vectors before it.

A modifier is no parameter of a method: its value is in the task, and it holds for any method with
a base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..method import Block, MergePass, Method, StatisticsPass, Task, Tensor

SCALED_SCRATCH = 16
"""Scratch bytes per element of a block for LiNeS: result and base, at most float64."""

AIM_SCRATCH = 8
"""Scratch bytes per element of a block for the factors of AIM, beside those of LiNeS."""

BALANCED_SCRATCH = 8
"""Scratch bytes per element of a block and source for balanced task vectors, at most float64."""


def begin(method: Method, task: Task) -> StatisticsPass | MergePass:
    """Return the first pass over a tensor: that of the method, with the modifiers of the task."""
    first: StatisticsPass | MergePass
    if task.balance:
        first = balanced(task, lambda: method.algorithm.begin(method, task))
    else:
        first = method.algorithm.begin(method, task)
    changes = task.scale != 1.0 or task.activations is not None
    return _modified(first, task) if changes else first


def scratch_bytes(task: Task, sources: int) -> int:
    """Return the scratch bytes per element of a block that the modifiers of a task take."""
    scaled = task.scale != 1.0 or task.activations is not None
    aimed = AIM_SCRATCH if task.activations is not None else 0
    return SCALED_SCRATCH * scaled + aimed + BALANCED_SCRATCH * sources * task.balance


def _modified(first: StatisticsPass | MergePass, task: Task) -> StatisticsPass | MergePass:
    """Return the passes that begin with `first`, the last with the factors of LiNeS and AIM added.

    LiNeS (arXiv:2410.17146) scales the result's difference from the base by the depth of the
    layer: `task.scale` is λ(l) = alpha + beta · (l − 1)/(L − 1). AIM (arXiv:2502.02421) scales it
    by 1 − s_j (1 − ω) in channel j, where s_j is the source of activations, from 0 to 1.
    """
    if isinstance(first, StatisticsPass):
        return _BeforeScaling(first, task)
    return _ScaledMerge(first, task)


def _own(block: Block, task: Task) -> Block:
    """Return the block without the source of AIM, as the method expects it."""
    if task.activations is None:
        return block
    return Block(block.tensors[: task.activations], block.start, block.scratch)


@dataclass
class _BeforeScaling(StatisticsPass):
    """A statistics pass of the method, which scaling does not affect."""

    inner: StatisticsPass
    task: Task

    def collect(self, block: Block) -> Any:
        return self.inner.collect(_own(block, self.task))

    def next_pass(self, partials: Sequence[Any]) -> StatisticsPass | MergePass:
        return _modified(self.inner.next_pass(partials), self.task)


@dataclass
class _ScaledMerge(MergePass):
    """The merge pass out = base + λ · (merged − base), in working precision, rounded once."""

    inner: MergePass
    task: Task

    def merge(self, block: Block, out: Tensor) -> None:
        task, count = self.task, out.numel()
        merged = block.scratch.take("scaled", count, task.work).view(out.shape)
        self.inner.merge(_own(block, task), merged)
        base = block.scratch.take("scaled base", count, task.work).view(out.shape)
        base.copy_(block.tensors[task.models].view(out.shape))
        merged.sub_(base)
        if task.scale != 1.0:
            merged.mul_(task.scale)
        if task.activations is not None:
            merged.mul_(_aim_factors(block, task, out))
        out.copy_(merged.add_(base))


def _aim_factors(block: Block, task: Task, out: Tensor) -> Tensor:
    """Return 1 − s (1 − ω) for every element of a block, in scratch memory."""
    factors = block.scratch.take("aim", out.numel(), task.work).view(out.shape)
    assert task.activations is not None
    factors.copy_(block.tensors[task.activations].view(out.shape))
    return factors.mul_(task.omega - 1.0).add_(1.0)


def balanced(task: Task, then: Callable[[], StatisticsPass | MergePass]) -> StatisticsPass:
    """Return the passes of `then` on balanced task vectors, after one that measures their lengths.

    Every x_m becomes base + δ_m · L/‖δ_m‖, with δ_m = x_m − base and L the mean length of those
    δ_m of the tensor that are not 0. The task has a base.
    """
    return _Lengths(task, then)


def balance_bytes(task: Task, block: int) -> int:
    """Return the bytes that the lengths of all blocks hold until the last is measured."""
    return 128 * task.models * (-(-math.prod(task.shape) // block) + 1)


@dataclass
class _Lengths(StatisticsPass):
    """The pass that measures ‖x_m − base‖ of every model, in float64."""

    task: Task
    then: Callable[[], StatisticsPass | MergePass]

    def collect(self, block: Block) -> list[float]:
        count, models = block.tensors[0].numel(), self.task.models
        work = "float32" if block.tensors[0].device.type == "mps" else "float64"
        base, delta = (block.scratch.take(slot, count, work) for slot in ("balance", "balanced 0"))
        base.copy_(block.tensors[models].reshape(-1))
        squares = []
        for values in block.tensors[:models]:
            delta.copy_(values.reshape(-1)).sub_(base)
            squares.append(float(delta.dot(delta)))
        return squares

    def next_pass(self, partials: Sequence[list[float]]) -> StatisticsPass | MergePass:
        squares = [math.fsum(part) for part in zip(*partials, strict=True)]
        lengths = [math.sqrt(square) for square in squares]
        others = [length for length in lengths if length]
        mean = math.fsum(others) / len(others) if others else 0.0
        return _on_balanced(self.then(), self.task, [mean / n if n else 1.0 for n in lengths])


def _on_balanced(
    inner: StatisticsPass | MergePass, task: Task, factors: Sequence[float]
) -> StatisticsPass | MergePass:
    if isinstance(inner, StatisticsPass):
        return _BalancedStatistics(inner, task, factors)
    return _BalancedMerge(inner, task, factors)


@dataclass
class _BalancedStatistics(StatisticsPass):
    """A statistics pass of the method, on balanced task vectors."""

    inner: StatisticsPass
    task: Task
    factors: Sequence[float]

    def collect(self, block: Block) -> Any:
        return self.inner.collect(_balanced_block(block, self.task, self.factors))

    def next_pass(self, partials: Sequence[Any]) -> StatisticsPass | MergePass:
        return _on_balanced(self.inner.next_pass(partials), self.task, self.factors)


@dataclass
class _BalancedMerge(MergePass):
    """The merge pass of the method, on balanced task vectors."""

    inner: MergePass
    task: Task
    factors: Sequence[float]

    def merge(self, block: Block, out: Tensor) -> None:
        self.inner.merge(_balanced_block(block, self.task, self.factors), out)


def _balanced_block(block: Block, task: Task, factors: Sequence[float]) -> Block:
    """Return the block with base + factor · (x_m − base) in place of every x_m."""
    work, models = task.work, task.models
    original = block.tensors[models]
    base = block.scratch.take("balance", original.numel(), work).view(original.shape)
    base.copy_(original)
    tensors = list(block.tensors)
    for model, factor in enumerate(factors):
        if factor != 1.0:
            taken = block.scratch.take(f"balanced {model}", base.numel(), work).view(base.shape)
            tensors[model] = taken.copy_(tensors[model]).sub_(base).mul_(factor).add_(base)
    return Block(tensors, block.start, block.scratch)
