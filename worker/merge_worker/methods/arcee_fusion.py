"""Arcee Fusion: only the most important differences of another model (Arcee)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..algorithms.elementwise import Elementwise, converted_source
from ..algorithms.order_statistics import READS, Threshold, held_bytes, order_statistics
from ..algorithms.weighted_sum import WeightedSum
from ..method import (
    BaseRole,
    Block,
    Granularity,
    MergePass,
    Method,
    StatisticsPass,
    Task,
    Tensor,
    merge_method,
)


class _Fusion(Elementwise):
    """The algorithm of `method(lower quartile, median, upper quartile) -> threshold`.

    An element is taken from the other model if its importance reaches the threshold.
    """

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.ROW

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 1 + READS + 1

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 8 * (3 + 2)  # both sources and one more here, two in the search for the quartiles

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        count = math.prod(task.shape)
        rows = count // task.shape[-1] if task.shape else 1
        # Divergences twice, when they are joined; flags and values where a block is chosen.
        return 2 * 8 * rows + 9 * block + held_bytes(count, block, [3], task.work)

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if task.models + task.has_base == 1 or math.prod(task.shape) == 0:
            return WeightedSum([1.0], task.work)
        return _Divergence(method, task)


@merge_method(
    _Fusion(),
    reference="https://www.arcee.ai/blog/"
    "meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    base=BaseRole.REQUIRED,
    models=(1, 1),
)
def arcee_fusion(lower: float, median: float, upper: float) -> float:
    """Take those elements of another model whose difference from the base is most important.

    I = |other − base| · KL(softmax(other) ‖ softmax(base)), KL computed per row (along the last
        axis, with 1e-8 added to each probability)
    out = other where I ≥ Q(1/2) + 1.5 (Q(3/4) − Q(1/4)), else base, with Q(f) the element of rank
          floor(f (n−1)) among the n importances of the tensor in ascending order

    Quartiles are those of all elements; mergekit draws a random million of a larger tensor. The
    result has the requested dtype, where mergekit writes float32. If all importances are equal,
    every element is the other model's. A source that is alone in its slice is copied.
    """
    return median + 1.5 * (upper - lower)


@dataclass
class _Divergence(StatisticsPass):
    """The pass that computes KL(softmax(other) ‖ softmax(base)) of every row.

    In float64: for similar models it is a tiny difference of large sums.
    """

    method: Method
    task: Task

    def collect(self, block: Block) -> Tensor:
        import torch

        length = self.task.shape[-1] if self.task.shape else 1
        p, q = (converted_source(block, i, "float64").view(-1, length) for i in (0, 1))
        for rows in (p, q):
            rows.sub_(rows.amax(-1, keepdim=True)).exp_()
            rows.div_(rows.sum(-1, keepdim=True)).add_(1e-8)
        return torch.div(p, q, out=q).log_().mul_(p).sum(-1).clamp_(min=0).cpu()

    def next_pass(self, partials: Sequence[Tensor]) -> StatisticsPass | MergePass:
        import torch

        importance = _Importance(self.task, torch.cat(list(partials)))
        count = math.prod(self.task.shape)
        ranks = [math.floor(f * (count - 1)) for f in (0.25, 0.5, 0.75)]

        def choose(thresholds: list[list[Threshold]]) -> MergePass:
            quartiles = [threshold.value for threshold in thresholds[0]]
            return _Choose(importance, self.method.call(self.task.values, *quartiles))

        return order_statistics(
            lambda block: [importance(block).view(-1)], count, [ranks], choose, whole=True
        )


@dataclass
class _Importance:
    """The importance |other − base| · KL of all elements of a block, from the KL of every row."""

    task: Task
    divergence: Tensor

    def __call__(self, block: Block) -> Tensor:
        other, base = (converted_source(block, i, self.task.work) for i in (0, 1))
        return other.sub_(base).abs_().view(-1, self._length).mul_(self.row_divergence(block))

    @property
    def _length(self) -> int:
        return self.task.shape[-1] if self.task.shape else 1

    def row_divergence(self, block: Block) -> Tensor:
        """Return the divergences of the block's rows, as a column on its device."""
        first, count = block.start // self._length, block.tensors[0].numel() // self._length
        column = self.divergence[first : first + count].unsqueeze(-1)
        return column.to(block.tensors[0].device)


@dataclass
class _Choose(MergePass):
    """The merge pass: the other model where the importance reaches the threshold, else the base."""

    importance: _Importance
    threshold: float

    def merge(self, block: Block, out: Tensor) -> None:
        import torch

        value = self.importance(block)
        divergence = self.importance.row_divergence(block)
        other, base = (x.view(value.shape) for x in block.tensors)
        out.copy_(torch.where(value >= self.threshold, other, base).view(out.shape))
        if not bool(divergence.isfinite().all()):
            # NaN: an element that is not finite has no importance, and would go unnoticed.
            out.view(value.shape).masked_fill_(~divergence.isfinite(), math.nan)
