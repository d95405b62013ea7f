"""Every model in turn takes the largest of what earlier ones left, evenly over the tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..algorithms.rank_search import ascending
from ..algorithms.task_vectors import SELECT, Rule, Unchanged, base_of, deltas_of
from ..method import BaseRole, Block, Granularity, MergePass, Task, merge_method

if TYPE_CHECKING:
    from torch import Tensor


WEIGHT: Any = 1.0

SPAN = 1 << 15
"""Elements to work on at a time."""


@dataclass(frozen=True)
class Turns(Rule):
    weight: Sequence[float]
    n: int
    m: int
    granularity: Granularity = Granularity.ROW

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n is {self.n} and m is {self.m}; n of every m elements are kept")

    def begin(self, task: Task) -> MergePass:
        return Take(self, task.work) if math.prod(task.shape) else Unchanged()


@dataclass
class Take(MergePass):
    rule: Turns
    work: str

    def merge(self, block: Block, out: Tensor) -> None:
        for rows, columns, width in spans(out.shape[0], out.shape[1], self.rule.m):
            here = [values[rows, columns].reshape(-1) for values in block.tensors]
            part = Block(here, block.start, block.scratch)
            base = base_of(part, self.work)
            total = block.scratch.take("total", base.numel(), self.work).zero_()
            free = block.scratch.take("free", base.numel(), self.work).fill_(1)
            for model, weight in enumerate(self.rule.weight):
                delta = deltas_of(part, base, [model]).each[0].mul_(free)
                size = delta.abs().view(-1, width)
                mask = largest_of_each(size, self.rule.n).view(-1)
                total.add_(delta.mul_(mask), alpha=weight)
                free.sub_(mask)
            target = out[rows, columns]
            target.copy_(base.add_(total).view(target.shape))


def spans(rows: int, length: int, m: int) -> Iterator[tuple[slice, slice, int]]:
    """Rows and columns to work on at a time, and the size of the groups there."""
    whole = length // m * m
    step = max(m, SPAN // m * m)
    columns = [(slice(c, min(whole, c + step)), m) for c in range(0, whole, step)]
    if whole < length:
        columns.append((slice(whole, length), length - whole))
    for column, width in columns:
        several = max(1, SPAN // (column.stop - column.start))
        for first in range(0, rows, several):
            yield slice(first, first + several), column, width


def largest_of_each(size: Tensor, n: int) -> Tensor:
    """1 for the n largest of each row, the first of equal ones; 0 for others and for zeros."""
    width = size.shape[1]
    mask = size.ne(0).to(size.dtype)
    if width <= n:
        return mask
    # NaN sorts last, so it is never "not above" and stays.
    bound = ascending(size).to(size.device)[:, width - n : width - n + 1]
    above = (~(size <= bound)).to(size.dtype)
    equal = (size == bound).to(size.dtype)
    room = n - above.sum(1, keepdim=True)
    return mask.mul_(above.add_(equal.mul_(equal.cumsum(1) <= room)))


@merge_method(
    SELECT,
    base=BaseRole.REQUIRED,
    models=(0, None),
    reference="https://arxiv.org/abs/2503.01874",
    experimental=True,
)
def cabs(*, weight: list[float] = WEIGHT, n: int = 64, m: int = 256) -> Turns:
    """out = b + Σ w_i s_i, with no element taken from two models.

    In the order of the recipe, s_i keeps the n largest of every m consecutive elements of x_i − b
    (n:m pruning), among those that no earlier model kept. So order matters: the first model gets
    its largest changes, later ones what is left; with m/n or more models most elements are taken.
    Of equal magnitudes the first are kept; elements that did not change are left to later models.

    Groups run along a row (all elements with one index on axis 0); where its length is no multiple
    of m its last group is shorter, of which up to n are kept. The authors' patch for mergekit
    groups over the flat tensor, which is the same where rows are multiples of m, and sorts models
    by name if no order is given. n and m are 64 and 256 in the paper for models of 7 B.
    """
    return Turns(weight, n, m)
