"""CABS: conflict-aware, balanced sparsification of task vectors (Yang et al., 2025)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..algorithms.rank_search import ascending
from ..algorithms.task_vectors import Rule, flat_base, task_vector_method, task_vectors
from ..method import Block, Granularity, MergePass, Task, Tensor, per_model

AREA = 1 << 15  # elements that are processed at a time


@task_vector_method("https://arxiv.org/abs/2503.01874", experimental=True)
def cabs(*, weight: list[float] = per_model(1.0), n: int = 64, m: int = 256) -> Rule:
    """Let models take turns: each keeps the largest n of every m elements that no other has taken.

    s_i = x_i − base, of which the n largest of every m consecutive elements are kept (n:m pruning),
          among those that no earlier model of the recipe has kept
    out = base + Σ w_i s_i

    weight: w_i.
    n, m: 64 and 256 in the paper, for models of 7 B parameters.

    No element is taken from two models, so order matters: the first model gets its largest changes,
    later ones what is left; with m/n or more models most elements are taken. Of equal magnitudes
    the first are kept; elements that did not change are left to later models.

    Groups run along a row (all elements with one index on axis 0); the last group of a row may be
    shorter than m, and up to n of it are kept. The authors' patch for mergekit groups over the flat
    tensor, which is the same if rows are multiples of m, and sorts models by name if no order is
    given.
    """
    return _Cabs(weight, n, m)


@dataclass(frozen=True)
class _Cabs(Rule):
    weight: Sequence[float]
    n: int
    m: int
    granularity: Granularity = Granularity.ROW

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n must be between 1 and m, got n {self.n} and m {self.m}")

    def held_bytes(self, task: Task, block: int) -> int:
        # A copy of every source, and what `largest_of_each` computes.
        return 8 * min(AREA, block) * (task.models + 16)

    def begin(self, task: Task) -> MergePass:
        return _TakeTurns(self, task.work)


@dataclass
class _TakeTurns(MergePass):
    rule: _Cabs
    work: str

    def merge(self, block: Block, out: Tensor) -> None:
        for rows, columns, width in areas(out.shape[0], out.shape[1], self.rule.m):
            tensors = [values[rows, columns].reshape(-1) for values in block.tensors]
            part = Block(tensors, block.start, block.scratch)
            base = flat_base(part, self.work)
            total = block.scratch.take("total", base.numel(), self.work).zero_()
            free = block.scratch.take("free", base.numel(), self.work).fill_(1)
            for model, weight in enumerate(self.rule.weight):
                vector = task_vectors(part, base, [model]).by_model[0].mul_(free)
                mask = largest_of_each(vector.abs().view(-1, width), self.rule.n).view(-1)
                total.add_(vector.mul_(mask), alpha=weight)
                free.sub_(mask)
            target = out[rows, columns]
            target.copy_(base.add_(total).view(target.shape))


def areas(rows: int, length: int, m: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield rows and columns of about AREA elements, and the size of the groups in them."""
    whole = length // m * m
    step = max(m, AREA // m * m)
    columns = [(slice(c, min(whole, c + step)), m) for c in range(0, whole, step)]
    if whole < length:
        columns.append((slice(whole, length), length - whole))
    for column, width in columns:
        several = max(1, AREA // (column.stop - column.start))
        for first in range(0, rows, several):
            yield slice(first, first + several), column, width


def largest_of_each(size: Tensor, n: int) -> Tensor:
    """Return 1 for the n largest of each row, the first of equal ones; 0 for others and zeros."""
    width = size.shape[1]
    mask = size.ne(0).to(size.dtype)
    if width <= n:
        return mask
    # NaN sorts last, so it is never "not above" and is kept.
    bound = ascending(size).to(size.device)[:, width - n : width - n + 1]
    above = (~(size <= bound)).to(size.dtype)
    equal = (size == bound).to(size.dtype)
    left = n - above.sum(1, keepdim=True)
    return mask.mul_(above.add_(equal.mul_(equal.cumsum(1) <= left)))
