"""What heat maps show: values by place and component, the ends of their colour scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..messages import printable
from .figures import Comparison, Row
from .metrics import Metric, Scale

NEUTRAL = {Scale.SIGNED: 0.0, Scale.CHANCE: 0.5}
# Red is trouble in both of the diverging ones: opposite directions, signs that conflict.
COLOURS = {
    Scale.SIGNED: "RdBu", Scale.CHANCE: "RdBu_r", Scale.SHARE: "cividis",
    Scale.MAGNITUDE: "viridis",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Places (rows, in order of layers) by components (columns) that occur."""

    places: tuple[tuple[str, int], ...]
    components: tuple[str, ...]
    cells: dict[tuple[str, int, str], Row]

    def labels(self) -> list[str]:
        """`model.layers.3`, `input`: what the places are called."""
        return [printable(f"{stack}{n}" if n >= 0 else stack) for stack, n in self.places]

    def values(self, metric: Metric) -> list[list[float]]:
        """NaN where there is no such component in a layer."""
        return [
            [self._value(metric, place, component) for component in self.components]
            for place in self.places
        ]

    def there(self, place: tuple[str, int], component: str) -> bool:
        """Whether a place has such a part, be there a figure of it or not."""
        return (*place, component) in self.cells

    def _value(self, metric: Metric, place: tuple[str, int], component: str) -> float:
        row = self.cells.get((*place, component))
        return metric.value(row.facts) if row else math.nan


def title_lines(of: str, most: int) -> list[str]:
    """A model, or the two of a pair one below the other, each with what fits of its name.

    The middle is what is left out: names differ at their ends.
    """
    parts = of.split(", ")
    lines = [parts[0], f"× {parts[1]}"] if len(parts) == 2 else [of]
    return [_elided(printable(line), most) for line in lines]


def _elided(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def grid_of(comparison: Comparison) -> Grid:
    """The places and components of a comparison."""
    rows = comparison.cells
    places = tuple(dict.fromkeys((row.stack, row.layer) for row in rows))
    components = tuple(row.component for row in comparison.components)
    return Grid(places, components, {(r.stack, r.layer, r.component): r for r in rows})


def limits(metric: Metric, values: Sequence[float]) -> tuple[float, float, bool]:
    """Ends of the colour scale, round so that pictures can be compared; whether it is logarithmic.

    A signed scale is even about its neutral value, so that the two hues mean the two sides.
    """
    found = [v for v in values if math.isfinite(v)]
    if metric.scale in NEUTRAL:
        middle = NEUTRAL[metric.scale]
        most = max([abs(v - middle) for v in found] or [middle or 1.0])
        bound = next((b for b in (0.05, 0.1, 0.25, 0.5) if b >= most), 1.0)
        return middle - bound, middle + bound, False
    if metric.scale is Scale.SHARE:
        return 0.0, next((b for b in (0.1, 0.25, 0.5) if b >= max(found, default=1)), 1.0), False
    above = [v for v in found if v > 0]
    low, high = min(above, default=0.1), max(above, default=1.0)
    if high > 10 * low:
        return low, high, True
    return 0.0, high, False


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between the ends; over many decades the powers alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    return [step * 10.0**power for power in decades for step in steps]
