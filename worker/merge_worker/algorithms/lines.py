"""LiNeS: scales the difference of any method's result from the base by the depth of the layer.

`task.scale` is λ(l) = alpha + beta · (l − 1)/(L − 1) (arXiv:2410.17146). The method merges into
working precision, its difference from the base is scaled there, and the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..method import Block, MergePass, StatisticsPass, Task, Tensor


def scaled(first: StatisticsPass | MergePass, task: Task) -> StatisticsPass | MergePass:
    """Return the passes that begin with `first`, with the scaling that `task` asks for added."""
    if task.scale == 1.0:
        return first
    if isinstance(first, StatisticsPass):
        return _UnchangedPass(first, task)
    return _ScaledMerge(first, task)


@dataclass
class _UnchangedPass(StatisticsPass):
    """A statistics pass of the method, which scaling does not affect."""

    inner: StatisticsPass
    task: Task

    def collect(self, block: Block) -> Any:
        return self.inner.collect(block)

    def next_pass(self, partials: Sequence[Any]) -> StatisticsPass | MergePass:
        return scaled(self.inner.next_pass(partials), self.task)


@dataclass
class _ScaledMerge(MergePass):
    """The merge pass out = base + λ · (merged − base)."""

    inner: MergePass
    task: Task

    def merge(self, block: Block, out: Tensor) -> None:
        work, count = self.task.work, out.numel()
        merged = block.scratch.take("scaled", count, work).view(out.shape)
        self.inner.merge(block, merged)
        base = block.scratch.take("scaled base", count, work).view(out.shape)
        base.copy_(block.tensors[-1].view(out.shape))
        merged.sub_(base).mul_(self.task.scale).add_(base)
        out.copy_(merged)
