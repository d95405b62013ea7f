"""Sums → the figures that people and programs read, for a tensor or for many together.

With τ_i = θ_i − θ_0 (with a base) or θ_i themselves (without) as vectors v_i, over the finite
elements e of the tensors that count:

    distance   d_ij = ‖θ_i − θ_j‖                    from the Gram matrix of x_0 and the deltas
    relative   with a base r_i = ‖τ_i‖ / ‖θ_0‖, of two models 2 d_ij / (‖θ_i‖ + ‖θ_j‖)
    cosine     ⟨v_i, v_j⟩ / (‖v_i‖ ‖v_j‖)
    conflict   #{v_i v_j < 0} / #{v_i ≠ 0 and v_j ≠ 0}
    overlap    #{v_i ≠ 0 and v_j ≠ 0} / #{v_i ≠ 0 or v_j ≠ 0}
    equal      #{θ_i = θ_j} / #e; for the base, what a model left unchanged
    opposed    of the elements that two or more vectors have: share with both signs among them

A share of nothing is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..method import matrix_shape
from ..structure.components import COMPONENTS
from .models import Models, Shared
from .sums import Sums, effective_ranks, nothing, sketched_pairs

if TYPE_CHECKING:
    from torch import Tensor


Matrix = list[list[float]]


@dataclass(frozen=True)
class Facts:
    """Figures by number of the model (the base is 0 if there is one); ranks by pair of models."""

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
    rank_of: str | None = None  # the matrix that the ranks are of, and how large they could be
    most_rank: int = 0


@dataclass(frozen=True)
class Row:
    """Facts and what they are of: a tensor, a component of a layer, a component, everything."""

    name: str
    component: str
    stack: str
    layer: int
    shape: tuple[int, ...]
    tensors: int
    facts: Facts

    @property
    def place(self) -> str:
        """`model.layers.3`, `input`, `output`, or `all`."""
        return f"{self.stack}{self.layer}" if self.layer >= 0 else self.stack


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured."""

    models: Models
    tensors: tuple[Row, ...]
    cells: tuple[Row, ...]  # by layer and component
    components: tuple[Row, ...]
    total: Row


def compare(models: Models, measured: Iterable[tuple[Shared, Sums]]) -> Comparison:
    """Add the sums of tensors up to cells, components and everything."""
    base = models.has_base
    every = nothing(len(models.labels), base)
    cells: dict[tuple[str, int, str], list[Any]] = {}
    parts: dict[str, list[Any]] = {}
    rows = []
    for tensor, sums in measured:
        facts = facts_of(sums, base, tensor)
        place = (tensor.stack, tensor.layer)
        rows.append(Row(tensor.name, tensor.component, *place, tensor.shape, 1, facts))
        for held, key in ((cells, (*place, tensor.component)), (parts, tensor.component)):
            group = held.setdefault(key, [nothing(len(models.labels), base), 0, None])  # type: ignore
            group[0].add(sums)
            group[1] += 1
            group[2] = facts if facts.ranks else group[2]
        every.add(sums)
    by_layer = [
        Row("", c, s, n, (), count, _with_rank(facts_of(sums, base), ranked))
        for (s, n, c), (sums, count, ranked) in cells.items()
    ]
    by_part = [
        Row("", c, "all", -1, (), parts[c][1], facts_of(parts[c][0], base))
        for c in COMPONENTS
        if c in parts
    ]
    total = Row("", "all", "all", -1, (), len(rows), facts_of(every, base))
    return Comparison(models, tuple(rows), tuple(_in_order(by_layer)), tuple(by_part), total)


def _in_order(cells: Sequence[Row]) -> list[Row]:
    """Components of one layer in the order of COMPONENTS; layers stay as they come."""
    places = list(dict.fromkeys((row.stack, row.layer) for row in cells))
    order = {place: number for number, place in enumerate(places)}
    return sorted(cells, key=lambda r: (order[r.stack, r.layer], COMPONENTS.index(r.component)))


def _with_rank(facts: Facts, ranked: Facts | None) -> Facts:
    if ranked is None:
        return facts
    return replace(facts, ranks=ranked.ranks, rank_of=ranked.rank_of, most_rank=ranked.most_rank)


def facts_of(sums: Sums, has_base: bool, tensor: Shared | None = None) -> Facts:
    """The figures of these sums; ranks only of one tensor."""
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
    both = sums.both
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
        count, norm, [int(n) for n in sums.nonfinite.tolist()], distance, relative,
        _pad(_cosines(vectors), has_base), conflict, overlap, equal.tolist(),
        opposed / shared if shared else math.nan,
        dict(zip(pairs, ranks, strict=True)) if ranks else {},
        tensor.name if tensor and ranks else None, min(shape) if shape else 0,
    )  # fmt: skip


def _weights_gram(gram: Tensor) -> Tensor:
    """⟨θ_i, θ_j⟩ from x_0 and the deltas: θ_i = x_0 + x_i."""
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
    found = (squares[:, None] + squares[None] - 2 * deltas).clamp(min=0).sqrt()
    # Equal models are at distance 0, however the sums were rounded.
    found[differ == 0] = 0
    return found.tolist()


def _relative(distance: float, norm: Sequence[float], i: int, j: int, has_base: bool) -> float:
    scale = norm[0] if has_base and 0 in (i, j) else (norm[i] + norm[j]) / 2
    if scale:
        return distance / scale
    return math.inf if distance else 0.0


def _cosines(vectors: Tensor) -> Tensor:
    lengths = vectors.diagonal().clamp(min=0).sqrt()
    return (vectors / lengths[:, None] / lengths[None]).clamp(-1, 1)


def _pad(values: Tensor, has_base: bool) -> Matrix:
    """A row and a column for the base, which has no vector."""
    rows: Matrix = values.tolist()
    if not has_base:
        return rows
    return [[math.nan] * (len(rows) + 1), *([math.nan, *row] for row in rows)]
