"""Heat maps as inline SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..drawing.colors import color
from .grid import COLOR_MAPS, Grid, limits, log_ticks, title_lines
from .metrics import Metric, shown

CELL, TOP = 22, 30


def fraction(value: float, low: float, high: float, log: bool) -> float:
    """Return the position of a value between the ends of a scale."""
    if math.isinf(value):
        return 1.0
    if log:
        return math.log(max(value, low) / low) / math.log(high / low)
    return (value - low) / (high - low) if high > low else 0.5


def group(grid: Grid, metrics: Sequence[Metric]) -> str:
    """Return the panels of one group and their color bar."""
    values = [grid.values(metric) for metric in metrics]
    ends = limits(metrics[0], [v for panel in values for row in panel for v in row])
    parts = [
        _panel(grid, metric, panel, ends, number == 0)
        for number, (metric, panel) in enumerate(zip(metrics, values, strict=True))
    ]
    return "".join([*parts, _bar(metrics[0], ends)])


def _panel(
    grid: Grid,
    metric: Metric,
    panel: list[list[float]],
    ends: tuple[float, float, bool],
    labeled: bool,
) -> str:
    tall = 16 if len(grid.places) <= 40 else 11
    left = 8 + 6 * max(len(name) for name in grid.labels()) if labeled else 2
    wide, high = CELL * len(grid.components), tall * len(grid.places)
    shapes = []
    for y, (row, place) in enumerate(zip(panel, grid.labels(), strict=True)):
        for x, (value, part) in enumerate(zip(row, grid.components, strict=True)):
            box = f'x="{left + x * CELL}" y="{TOP + y * tall}" width="{CELL}" height="{tall}"'
            if math.isnan(value):
                kind = "blank" if grid.has_part(grid.places[y], part) else "none"
                shapes.append(f'<rect class="{kind}" {box}/>')
                continue
            fill = color(COLOR_MAPS[metric.scale], fraction(value, *ends))
            title = f"{place} {part}: {shown(value, metric.percent)}"
            shapes.append(f'<rect {box} fill="{fill}"><title>{escape(title)}</title></rect>')
        if labeled:
            shapes.append(
                f'<text x="{left - 4}" y="{TOP + (y + 0.5) * tall + 3.5:g}" '
                f'text-anchor="end">{escape(place)}</text>'
            )
    shapes.append(f'<rect class="frame" x="{left}" y="{TOP}" width="{wide}" height="{high}"/>')
    for x, part in enumerate(grid.components):
        at = f"{left + x * CELL + CELL / 2 + 3.5:g} {TOP + 6 + high}"
        shapes.append(
            f'<text transform="translate({at}) rotate(-90)" text-anchor="end">{escape(part)}</text>'
        )
    titles = title_lines(metric.panel, max(18, wide // 6))
    for n, line in enumerate(reversed(titles)):
        shapes.append(f'<text x="{left}" y="{TOP - 6 - 12 * n}">{escape(line)}</text>')
    longest = max(map(len, titles))
    size = f'width="{left + max(wide, 6 * longest) + 4}" height="{high + TOP + 122}"'
    label = escape(f"{metric.title}: {_summary(grid, panel, metric)}")
    return f'<svg role="img" aria-label="{label}" {size}>{"".join(shapes)}</svg>'


def _summary(grid: Grid, panel: list[list[float]], metric: Metric) -> str:
    """Describe the range of a panel, for screen readers."""
    cells = [
        (value, f"{place} {part}")
        for row, place in zip(panel, grid.labels(), strict=True)
        for value, part in zip(row, grid.components, strict=True)
        if not math.isnan(value)
    ]
    if not cells:
        return "no values"
    low, high = min(cells), max(cells)
    least, most = shown(low[0], metric.percent), shown(high[0], metric.percent)
    return f"from {least} in {low[1]} to {most} in {high[1]}; all values are in the table below"


def _bar(metric: Metric, ends: tuple[float, float, bool]) -> str:
    low, high, log = ends
    steps = 32
    tall = 96 / steps
    shapes = [
        f'<rect x="2" y="{TOP + 96 - (n + 1) * tall:g}" width="10" height="{tall + 0.5:g}" '
        f'fill="{color(COLOR_MAPS[metric.scale], n / (steps - 1))}"/>'
        for n in range(steps)
    ]
    ticks = [t for t in log_ticks(low, high) if low <= t <= high] if log else []
    if len(ticks) < 2:
        ticks = [low, (low * high) ** 0.5 if log else (low + high) / 2, high]
    for tick in ticks:
        y = TOP + 96 * (1 - fraction(tick, low, high, log)) + 3.5
        label = f"{100 * tick:.3g}%" if metric.percent else f"{tick:.3g}"
        shapes.append(f'<text x="16" y="{y:g}">{label}</text>')
    return f'<svg aria-hidden="true" width="60" height="{TOP + 112}">{"".join(shapes)}</svg>'
