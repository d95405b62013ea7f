"""The values of heat maps by place and component, and the ends of their color scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..messages import printable
from .figures import Comparison, Row
from .metrics import Metric, Scale

MOST_NAMES = 8

NEUTRAL = {Scale.SIGNED: 0.0, Scale.CHANCE: 0.5}
# In both diverging maps, red stands for trouble: opposite directions, conflicting signs.
COLOR_MAPS = {
    Scale.SIGNED: "RdBu",
    Scale.CHANCE: "RdBu_r",
    Scale.SHARE: "cividis",
    Scale.MAGNITUDE: "viridis",
}


@dataclass(frozen=True)
class Grid:
    """A grid of places (rows, sorted by layer) and components (columns)."""

    places: tuple[tuple[str, int], ...]
    components: tuple[str, ...]
    cells: dict[tuple[str, int, str], Row]

    def labels(self) -> list[str]:
        """Return the names of the places, such as `model.layers.3` or `input`."""
        return [printable(f"{stack}{n}" if n >= 0 else stack) for stack, n in self.places]

    def values(self, metric: Metric) -> list[list[float]]:
        """Return values by place and component; NaN where a layer lacks a component."""
        rows = [[self.cells.get((*place, c)) for c in self.components] for place in self.places]
        return [[metric.value(row.facts) if row else math.nan for row in line] for line in rows]

    def has_part(self, place: tuple[str, int], component: str) -> bool:
        """Return whether a place has a component, even one for which a figure is not defined."""
        return (*place, component) in self.cells


def title_lines(subject: str, most: int) -> list[str]:
    """Return the lines of a title: a model, or the two of a pair, cut to `most` characters.

    Names are cut in the middle, since they differ at their ends.
    """
    parts = subject.split(", ")
    lines = [parts[0], f"× {parts[1]}"] if len(parts) == 2 else subject.split("\n")
    return [elided(printable(line), most) for line in lines]


def elided(text: str, most: int) -> str:
    """Cut a text in its middle to at most so many characters."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def grid_of(comparison: Comparison) -> Grid:
    """Return the grid of a comparison."""
    rows = comparison.cells
    places = tuple(dict.fromkeys((row.stack, row.layer) for row in rows))
    components = tuple(row.component for row in comparison.components)
    return Grid(places, components, {(r.stack, r.layer, r.component): r for r in rows})


def heading_of(comparison: Comparison) -> str:
    """Return the names of the models and of their base; with many models, their number."""
    models = comparison.models
    names = [models.labels[i] for i in models.own]
    listed = ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} models"
    return printable(f"{listed}, from {models.labels[0]}" if models.has_base else listed)


def pair_matrices(comparison: Comparison) -> list[tuple[Metric, list[list[float]]]]:
    """Return the cosines and sign conflicts of every two models; NaN on the diagonals."""
    models, facts = comparison.models, comparison.total.facts
    if not models.pairs:
        return []
    signs = Scale.CHANCE if models.has_base else Scale.SHARE
    matrices = []
    for group, scale, values in (
        ("cosine", Scale.SIGNED, facts.cosine),
        ("conflicts", signs, facts.conflict),
    ):
        rows = [[values[i][j] if i != j else math.nan for j in models.own] for i in models.own]
        matrices.append((Metric(group, "models", scale, models.pairs), rows))
    return matrices


def limits(metric: Metric, values: Sequence[float]) -> tuple[float, float, bool]:
    """Return the two ends of the color scale, and whether it is logarithmic.

    Ends are round, so that plots can be compared. A diverging scale is symmetric about its neutral
    value, so that each hue stands for one side. It ends where all but a tenth of the values lie,
    so that a few extremes do not leave the others without color.
    """
    finite = sorted(v for v in values if math.isfinite(v))
    if metric.scale in NEUTRAL:
        middle = NEUTRAL[metric.scale]
        sizes = sorted(abs(v - middle) for v in finite) or [middle or 1.0]
        most = sizes[math.ceil(0.9 * len(sizes)) - 1]
        bound = next((b for b in (0.02, 0.05, 0.1, 0.25, 0.5) if b >= most), 1.0)
        return middle - bound, middle + bound, False
    if metric.scale is Scale.SHARE:
        low, high = (finite[0], finite[-1]) if finite else (0.0, 1.0)
        if low >= 0.5:
            return 1 - next(b for b in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5) if b >= 1 - low), 1, False
        return 0.0, next((b for b in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5) if b >= high), 1.0), False
    positive = [v for v in finite if v > 0]
    low, high = min(positive, default=0.1), max(positive, default=1.0)
    if high > 10 * low:
        return low, high, True
    return (low if 0.5 * high < low < high else 0.0), high, False


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between the ends, or the powers alone if many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [step * 10.0**power for power in decades for step in steps]
