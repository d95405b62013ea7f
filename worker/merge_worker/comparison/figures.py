"""Figures computed from sums, for one tensor or for many together.

With τ_i = θ_i − θ_0 (with a base) or θ_i themselves (without) as vectors v_i, over the finite
elements e of the tensors:

    distance   d_ij = ‖θ_i − θ_j‖                    from the Gram matrix of x_0 and the deltas
    relative   with a base r_i = ‖τ_i‖ / ‖θ_0‖, of two models 2 d_ij / (‖θ_i‖ + ‖θ_j‖)
    cosine     ⟨v_i, v_j⟩ / (‖v_i‖ ‖v_j‖)
    conflict   #{v_i v_j < 0} / #{v_i ≠ 0 and v_j ≠ 0}
    overlap    #{v_i ≠ 0 and v_j ≠ 0} / #{v_i ≠ 0 or v_j ≠ 0}
    equal      #{θ_i = θ_j} / #e; for the base, what a model left unchanged
    opposed    share of the elements nonzero in two or more vectors that have both signs

A share of zero elements is NaN.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import pad

from ..method import matrix_shape
from ..structure.components import COMPONENTS
from .models import Models, Shared
from .sums import Sums, effective_ranks, sketched_pairs, zero_sums

Matrix = list[list[float]]
Place = tuple[str, int]
"""A stack and the number of a layer, -1 outside of layers."""


@dataclass(frozen=True)
class Facts:
    """Figures by index of the model (the base, if any, is 0), or by two of them."""

    elements: int
    norm: list[float]
    nonfinite: list[int]
    distance: Matrix
    relative: Matrix
    cosine: Matrix
    conflict: Matrix
    overlap: Matrix
    equal: Matrix
    opposed: float
    ranks: Matrix
    rank_of: str | None = None  # the matrix with these ranks, and their upper bound
    full_rank: int = 0


@dataclass(frozen=True)
class Row:
    """The facts of a tensor, of a component of a layer, of a component, or of everything."""

    name: str
    component: str
    stack: str
    layer: int
    shape: tuple[int, ...]
    tensors: int
    facts: Facts

    @property
    def place(self) -> str:
        """Return `model.layers.3`, `input`, `output`, or `all`."""
        return f"{self.stack}{self.layer}" if self.layer >= 0 else self.stack


@dataclass(frozen=True)
class Comparison:
    """All measurements of a set of models."""

    models: Models
    tensors: tuple[Row, ...]
    cells: tuple[Row, ...]  # by layer and component
    components: tuple[Row, ...]
    total: Row


@dataclass
class _Group:
    """The sums of several tensors, and the facts of the one with ranks."""

    sums: Sums
    tensors: int = 0
    ranked: Facts | None = None


def compare(models: Models, measured: Iterable[tuple[Shared, Sums]]) -> Comparison:
    """Add up the sums of tensors for cells, for components and for everything."""

    def new_group() -> _Group:
        return _Group(zero_sums(len(models.labels), models.has_base))

    def row(component: str, place: Place, group: _Group) -> Row:
        facts = facts_of(group.sums, models.has_base)
        if best := group.ranked:
            facts = replace(facts, ranks=best.ranks, rank_of=best.rank_of, full_rank=best.full_rank)
        return Row("", component, *place, (), group.tensors, facts)

    cells: dict[Place, defaultdict[str, _Group]] = defaultdict(lambda: defaultdict(new_group))
    components: dict[str, _Group] = defaultdict(new_group)
    overall, everywhere = new_group(), ("all", -1)
    tensors = []
    for tensor, sums in measured:
        facts = facts_of(sums, models.has_base, tensor)
        place = (tensor.stack, tensor.layer)
        tensors.append(Row(tensor.name, tensor.component, *place, tensor.shape, 1, facts))
        cell = cells[place][tensor.component]
        for group in (cell, components[tensor.component], overall):
            group.sums.add(sums)
            group.tensors += 1
        cell.ranked = facts if facts.rank_of else cell.ranked
    by_layer = [
        row(component, place, groups[component])
        for place, groups in cells.items()
        for component in COMPONENTS
        if component in groups
    ]
    by_component = [row(c, everywhere, components[c]) for c in COMPONENTS if c in components]
    total = row("all", everywhere, overall)
    return Comparison(models, tuple(tensors), tuple(by_layer), tuple(by_component), total)


def facts_of(sums: Sums, has_base: bool, tensor: Shared | None = None) -> Facts:
    """Return the figures that follow from sums; ranks are given for a single tensor only."""
    gram, count = sums.gram, sums.elements
    # The reference x_0 has no delta; θ_i = x_0 + x_i.
    deltas, cross = pad(gram[1:, 1:], (1, 0, 1, 0)), pad(gram[:1, 1:], (1, 0))
    squares = gram[0, 0] + cross + cross.mT + deltas
    norm: list[float] = squares.diagonal().clamp(min=0).sqrt().tolist()
    distance = _distances(deltas, sums.differ)
    relative = [
        [_relative(distance[i][j], norm, i, j, has_base) for j in range(len(norm))]
        for i in range(len(norm))
    ]
    vectors = gram[1:, 1:] if has_base else squares
    equal = (1 - sums.differ / count) if count else sums.differ * math.nan
    both = sums.both_nonzero
    conflict = _pad((both - sums.signs) / 2 / both, has_base)
    changed = both.diagonal()
    overlap = _pad(both / (changed[:, None] + changed[None] - both), has_base)
    shared, opposed = sums.opposed.tolist()
    k = len(norm)
    pairs = [(0, j) for j in range(1, k)] if has_base else sketched_pairs(k)
    ranks = [[math.nan] * k for _ in range(k)]
    shape = matrix_shape(tensor.shape) if tensor else None
    estimates = effective_ranks(sums, shape) if shape else None
    if estimates is not None:
        for (i, j), rank in zip(pairs, estimates, strict=True):
            ranks[i][j] = rank
    return Facts(
        elements=count,
        norm=norm,
        nonfinite=[int(n) for n in sums.nonfinite.tolist()],
        distance=distance,
        relative=relative,
        cosine=_pad(_cosines(vectors), has_base),
        conflict=conflict,
        overlap=overlap,
        equal=equal.tolist(),
        opposed=opposed / shared if shared else math.nan,
        ranks=ranks,
        rank_of=tensor.name if tensor and estimates else None,
        full_rank=min(shape) if shape else 0,
    )


def _distances(deltas: Tensor, differ: Tensor) -> Matrix:
    squares = deltas.diagonal()
    distances = (squares[:, None] + squares[None] - 2 * deltas).clamp(min=0).sqrt()
    # Rounded sums would put equal models at a small distance.
    return distances.masked_fill(differ == 0, 0).tolist()


def _relative(distance: float, norm: Sequence[float], i: int, j: int, has_base: bool) -> float:
    scale = norm[0] if has_base and 0 in (i, j) else (norm[i] + norm[j]) / 2
    if scale:
        return distance / scale
    return math.inf if distance else 0.0


def _cosines(vectors: Tensor) -> Tensor:
    lengths = vectors.diagonal().clamp(min=0).sqrt()
    return (vectors / lengths[:, None] / lengths[None]).clamp(-1, 1)


def _pad(values: Tensor, has_base: bool) -> Matrix:
    """Add a row and a column of NaN for the base, which has no vector."""
    return (pad(values, (1, 0, 1, 0), value=math.nan) if has_base else values).tolist()
