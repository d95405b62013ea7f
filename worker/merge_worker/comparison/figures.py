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

from ..method import matrix_shape
from ..structure.components import COMPONENTS
from .models import Models, Shared
from .sums import Sums, effective_ranks, sketched_pairs, zero_sums

Matrix = list[list[float]]


@dataclass(frozen=True)
class Facts:
    """Figures by index of the model (the base, if any, is 0); ranks by pair of models."""

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
    ranks: dict[tuple[int, int], float]
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
    base = models.has_base
    k = len(models.labels)
    overall = zero_sums(k, base)
    cells: defaultdict[tuple[str, int, str], _Group] = defaultdict(
        lambda: _Group(zero_sums(k, base))
    )
    components: defaultdict[str, _Group] = defaultdict(lambda: _Group(zero_sums(k, base)))
    rows = []
    for tensor, sums in measured:
        facts = facts_of(sums, base, tensor)
        place = (tensor.stack, tensor.layer)
        rows.append(Row(tensor.name, tensor.component, *place, tensor.shape, 1, facts))
        for group in (cells[(*place, tensor.component)], components[tensor.component]):
            group.sums.add(sums)
            group.tensors += 1
            group.ranked = facts if facts.ranks else group.ranked
        overall.add(sums)
    by_layer = [
        Row("", c, s, n, (), cell.tensors, _with_rank(facts_of(cell.sums, base), cell.ranked))
        for (s, n, c), cell in cells.items()
    ]
    by_component = [
        Row("", c, "all", -1, (), components[c].tensors, facts_of(components[c].sums, base))
        for c in COMPONENTS
        if c in components
    ]
    total = Row("", "all", "all", -1, (), len(rows), facts_of(overall, base))
    return Comparison(models, tuple(rows), tuple(_in_order(by_layer)), tuple(by_component), total)


def _in_order(cells: Sequence[Row]) -> list[Row]:
    """Sort the components of each layer in the order of COMPONENTS; layers keep their order."""
    places = list(dict.fromkeys((row.stack, row.layer) for row in cells))
    order = {place: number for number, place in enumerate(places)}
    return sorted(cells, key=lambda r: (order[r.stack, r.layer], COMPONENTS.index(r.component)))


def _with_rank(facts: Facts, ranked: Facts | None) -> Facts:
    if ranked is None:
        return facts
    return replace(facts, ranks=ranked.ranks, rank_of=ranked.rank_of, full_rank=ranked.full_rank)


def facts_of(sums: Sums, has_base: bool, tensor: Shared | None = None) -> Facts:
    """Return the figures that follow from sums; ranks are given for a single tensor only."""
    gram, count = sums.gram, sums.elements
    squares = _weights_gram(gram)
    norm = _roots(squares.diagonal())
    distance = _distances(gram, sums.differ)
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
    ranks, shape = None, None
    if tensor is not None and (shape := matrix_shape(tensor.shape)):
        ranks = effective_ranks(sums, shape)
    k = len(norm)
    pairs = [(0, j) for j in range(1, k)] if has_base else sketched_pairs(k)
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
        ranks=dict(zip(pairs, ranks, strict=True)) if ranks else {},
        rank_of=tensor.name if tensor and ranks else None,
        full_rank=min(shape) if shape else 0,
    )


def _weights_gram(gram: Tensor) -> Tensor:
    """Return ⟨θ_i, θ_j⟩ from x_0 and the deltas: θ_i = x_0 + x_i."""
    cross = gram[:1].clone()
    cross[0, 0] = 0
    rest = gram.clone()
    rest[0] = 0
    rest[:, 0] = 0
    return gram[0, 0] + cross + cross.mT + rest


def _roots(squares: Tensor) -> list[float]:
    return squares.clamp(min=0).sqrt().tolist()


def _distances(gram: Tensor, differ: Tensor) -> Matrix:
    deltas = gram.clone()
    deltas[0] = 0
    deltas[:, 0] = 0
    squares = deltas.diagonal()
    distances = (squares[:, None] + squares[None] - 2 * deltas).clamp(min=0).sqrt()
    # Rounded sums would put equal models at a small distance.
    distances[differ == 0] = 0
    return distances.tolist()


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
    rows: Matrix = values.tolist()
    if not has_base:
        return rows
    return [[math.nan] * (len(rows) + 1), *([math.nan, *row] for row in rows)]
