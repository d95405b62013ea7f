"""Family of arcee_fusion: the elements of another model that matter most, by exact quartiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..algorithms.elementwise import converted
from ..algorithms.order_statistics import READS, Threshold, order_statistics
from ..algorithms.weighted_sum import WeightedSum, check_sources
from ..method import (
    BaseRole,
    Block,
    Granularity,
    MergePass,
    Method,
    StatisticsPass,
    Task,
    merge_method,
)

if TYPE_CHECKING:
    from torch import Tensor


class Fusion:
    """`method(lower quartile, median, upper quartile) -> threshold` of the importance.

    The importance of an element is |other - base| times the divergence of its row.
    """

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return Granularity.ROW

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 1 + READS + 1

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 8 * (3 + 2)  # both sources and one more here, two in the search for the quartiles

    def check(self, method: Method, task: Task) -> None:
        if task.models + task.has_base > 1:
            check_sources(method, task)

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if task.models + task.has_base == 1 or math.prod(task.shape) == 0:
            return WeightedSum([1.0], task.work)
        return Divergence(method, task)


@dataclass
class Divergence(StatisticsPass):
    """KL(softmax of the other's row ‖ softmax of the base's), rows being runs of the last axis.

    In float64: for models that are alike it is a tiny difference of large sums.
    """

    method: Method
    task: Task

    def collect(self, block: Block) -> Tensor:
        import torch

        length = self.task.shape[-1] if self.task.shape else 1
        p, q = (converted(block, i, "float64").view(-1, length) for i in (0, 1))
        for rows in (p, q):
            rows.sub_(rows.amax(-1, keepdim=True)).exp_()
            rows.div_(rows.sum(-1, keepdim=True)).add_(1e-8)
        return torch.div(p, q, out=q).log_().mul_(p).sum(-1).clamp_(min=0).cpu()

    def next_pass(self, partials: Sequence[Tensor]) -> StatisticsPass | MergePass:
        import torch

        importance = Importance(self.task, torch.cat(list(partials)))
        count = math.prod(self.task.shape)
        ranks = [math.floor(f * (count - 1)) for f in (0.25, 0.5, 0.75)]

        def then(found: list[list[Threshold]]) -> MergePass:
            quartiles = [threshold.value for threshold in found[0]]
            return Choose(importance, self.method.call(self.task, *quartiles))

        return order_statistics(importance.series, count, [ranks], then, whole=True)


@dataclass
class Importance:
    """|other - base| times the divergence of the row, for all elements of a block."""

    task: Task
    divergence: Tensor  # one per row of the tensor

    def series(self, block: Block) -> list[Tensor]:
        return [self(block).view(-1)]

    def __call__(self, block: Block) -> Tensor:
        other, base = (converted(block, i, self.task.work) for i in (0, 1))
        return other.sub_(base).abs_().view(-1, self._length).mul_(self.rows(block))

    @property
    def _length(self) -> int:
        return self.task.shape[-1] if self.task.shape else 1

    def rows(self, block: Block) -> Tensor:
        """The divergences of the block's rows, as a column."""
        first, count = block.start // self._length, block.tensors[0].numel() // self._length
        here = self.divergence[first : first + count].unsqueeze(-1)
        return here.to(block.tensors[0].device)


@dataclass
class Choose(MergePass):
    """The other model where the importance reaches the threshold."""

    importance: Importance
    threshold: float

    def merge(self, block: Block, out: Tensor) -> None:
        import torch

        value = self.importance(block)
        rows = self.importance.rows(block)
        other, base = (x.view(value.shape) for x in block.tensors)
        out.copy_(torch.where(value >= self.threshold, other, base).view(out.shape))
        if not bool(rows.isfinite().all()):
            # What is not finite in a row has no importance, and would be left out unseen.
            out.view(value.shape).masked_fill_(~rows.isfinite(), math.nan)


# MERGED The elements of another model that differ most where it matters.


@merge_method(
    Fusion(),
    reference="https://www.arcee.ai/blog/"
    "meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
    base=BaseRole.REQUIRED,
    models=(1, 1),
)
def arcee_fusion(lower: float, median: float, upper: float) -> float:
    """out = other where I ≥ Q(½) + 1.5 (Q(¾) - Q(¼)), else base; I = |other - base| · KL.

    KL is the divergence of softmax(other) from softmax(base) along the last axis (each with 1e-8
    added), one number per row; Q(f) is the element of rank floor(f (n-1)) of I in rising order.

    The quartiles are those of all elements, where mergekit draws a random million of a larger
    tensor. The result has the dtype that was asked for, where mergekit writes float32. Where all
    importances are equal, every element is the other model's. A source that stands alone in its
    slice is copied.
    """
    return median + 1.5 * (upper - lower)
