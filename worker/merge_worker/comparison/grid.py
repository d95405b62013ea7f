"""The values of heat maps by place and component, and the ends of their color scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..messages import printable
from .figures import Comparison, Row
from .metrics import Metric, Scale

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
    lines = [parts[0], f"× {parts[1]}"] if len(parts) == 2 else [subject]
    return [_elided(printable(line), most) for line in lines]


def _elided(text: str, most: int) -> str:
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


def limits(metric: Metric, values: Sequence[float]) -> tuple[float, float, bool]:
    """Return the two ends of the color scale, and whether it is logarithmic.

    Ends are round, so that plots can be compared. A diverging scale is symmetric about its neutral
    value, so that each hue stands for one side.
    """
    finite = [v for v in values if math.isfinite(v)]
    if metric.scale in NEUTRAL:
        middle = NEUTRAL[metric.scale]
        most = max([abs(v - middle) for v in finite] or [middle or 1.0])
        bound = next((b for b in (0.05, 0.1, 0.25, 0.5) if b >= most), 1.0)
        return middle - bound, middle + bound, False
    if metric.scale is Scale.SHARE:
        return 0.0, next((b for b in (0.1, 0.25, 0.5) if b >= max(finite, default=1)), 1.0), False
    positive = [v for v in finite if v > 0]
    low, high = min(positive, default=0.1), max(positive, default=1.0)
    return (low, high, True) if high > 10 * low else (0.0, high, False)


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten between the ends, or the powers alone if many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [step * 10.0**power for power in decades for step in steps]
