"""Heat maps by layer and component in print quality: PNG, PDF or SVG, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from ..messages import printable
from .figures import Comparison
from .grid import COLOR_MAPS, Grid, grid_of, limits, log_ticks, title_lines
from .metrics import FIGURES, Metric

PANELS_PER_LINE = 9
MOST_LABELS = 34
SHORT = {"linear attention/SSM": "linear/SSM", "embeddings": "embed."}
ABOVE, BELOW, LEFT, BESIDE = 0.75, 0.95, 1.0, 0.95
"""Inches around the panels of a line, for titles, component names, layer names and color bars."""


def figure(comparison: Comparison, chosen: Sequence[Metric]) -> Any:
    """Return a matplotlib figure: lines of groups of panels, each group with one color bar."""
    from matplotlib.figure import Figure

    grid = grid_of(comparison)
    lines: list[list[list[Metric]]] = [[]]
    for group in (list(metrics) for _, metrics in groupby(chosen, lambda metric: metric.group)):
        if lines[-1] and sum(map(len, lines[-1])) + len(group) > PANELS_PER_LINE:
            lines.append([])
        lines[-1].append(group)
    # Layers stay distinct, and two lines of panels fit a page.
    tall = min(5.2, max(1.3, 0.13 * len(grid.places)))
    panel = 0.2 + 0.19 * len(grid.components)
    wide = max(sum(panel * len(g) + BESIDE for g in line) + LEFT for line in lines)
    # Positions are computed in inches, so that labels fit whatever the panels hold.
    total = (tall + ABOVE + BELOW) * len(lines)
    drawn = Figure(figsize=(wide, total))
    for number, line in enumerate(lines):
        bottom, left = total - (number + 1) * (tall + ABOVE + BELOW) + BELOW, LEFT
        for place, group in enumerate(line):
            box = _Box(left, bottom, panel, tall, wide, total)
            _panels(drawn, grid, group, box, place == 0)
            left += panel * len(group) + BESIDE
    drawn.text(LEFT / wide, 0.02 / total, _legend(grid, chosen), fontsize=6, color="0.35")
    return drawn


def _legend(grid: Grid, chosen: Sequence[Metric]) -> str:
    """Explain the cells without a value, if there are any."""
    present = [grid.has_part(place, part) for place in grid.places for part in grid.components]
    undefined = any(
        math.isnan(value) and is_present
        for metric in chosen
        for value, is_present in zip(chain(*grid.values(metric)), present, strict=True)
    )
    lines = [] if all(present) else ["hatched: missing from this layer"]
    return "; ".join([*lines, *(["gray: figure not defined"] if undefined else [])])


@dataclass(frozen=True)
class _Box:
    """The position of a group, and the size of its panels and of the figure, in inches."""

    left: float
    bottom: float
    wide: float
    tall: float
    figure_wide: float
    figure_tall: float

    def axes(self, drawn: Any, left: float, wide: float, tall: float) -> Any:
        """Add axes of this size at the top of the group."""
        size = (self.figure_wide, self.figure_tall, self.figure_wide, self.figure_tall)
        spans = (self.left + left, self.bottom + self.tall - tall, wide, tall)
        return drawn.add_axes([span / whole for span, whole in zip(spans, size, strict=True)])


def _panels(drawn: Any, grid: Grid, group: Sequence[Metric], box: _Box, first: bool) -> None:
    """Draw the panels of one group, and their color bar."""
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize

    values = [grid.values(metric) for metric in group]
    low, high, log = limits(group[0], [v for panel in values for row in panel for v in row])
    norm = LogNorm(low, high) if log else Normalize(low, high)
    colors = matplotlib.colormaps[COLOR_MAPS[group[0].scale]].with_extremes(bad="none")
    most = int((box.wide - 0.1) / 0.055)
    for number, (metric, panel) in enumerate(zip(group, values, strict=True)):
        axes = box.axes(drawn, number * box.wide, box.wide - 0.1, box.tall)
        _draw_background(axes, grid)
        image = axes.imshow(panel, aspect="auto", cmap=colors, norm=norm, interpolation="nearest")
        _label(axes, grid, "\n".join(title_lines(metric.subject, most)), first and number == 0)
    middle = (box.left + (box.wide * len(group) - 0.1) / 2) / box.figure_wide
    above = (box.bottom + box.tall + 0.42) / box.figure_tall
    drawn.text(middle, above, group[0].group, ha="center", fontsize=9, fontweight="bold")
    bar_axes = box.axes(drawn, box.wide * len(group) - 0.05, 0.09, min(box.tall, 2.2))
    _bar(drawn, image, bar_axes, group[0], (low, high, log))


def _draw_background(axes: Any, grid: Grid) -> None:
    """Draw the cells without a value: gray if the layer has the component, else hatched."""
    axes.patch.set(hatch="//////", edgecolor="0.88", facecolor="white")
    shades = [
        [0.85 if grid.has_part(place, part) else math.nan for part in grid.components]
        for place in grid.places
    ]
    axes.imshow(shades, aspect="auto", cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _bar(
    drawn: Any, image: Any, axes: Any, metric: Metric, ends: tuple[float, float, bool]
) -> None:
    low, high, log = ends
    bar = drawn.colorbar(image, cax=axes)
    bar.ax.tick_params(labelsize=6, length=2, pad=1)
    bar.outline.set_linewidth(0.4)
    ticks = log_ticks(low, high) if log else bar.get_ticks()
    bar.set_ticks([tick for tick in ticks if low <= tick <= high], minor=False)
    bar.ax.yaxis.set_minor_formatter(lambda value, _: "")
    unit = (100, "%") if metric.percent else (1, "")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{unit[0] * value:.3g}{unit[1]}")
    bar.set_label(FIGURES[metric.group].label, fontsize=6.5, labelpad=2)


def _label(axes: Any, grid: Grid, title: str, labeled: bool) -> None:
    axes.set_title(title, fontsize=7, pad=3, linespacing=1.1)
    components = [SHORT.get(name, name) for name in grid.components]
    axes.set_xticks(range(len(components)), components, rotation=90, fontsize=7)
    axes.tick_params(length=1.5, width=0.4, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    if not labeled:
        axes.set_yticks([])
        return
    least = len(grid.places) / MOST_LABELS
    step = next((n for n in (1, 2, 5, 10, 20) if n >= least), 50)
    named = [row for row, (_, number) in enumerate(grid.places) if number < 0]
    shown = [
        (row, f"{number}" if number >= 0 else stack)
        for row, (stack, number) in enumerate(grid.places)
        if number < 0 or (number % step == 0 and all(abs(row - n) >= least for n in named))
    ]
    axes.set_yticks([row for row, _ in shown], [text for _, text in shown], fontsize=6)
    stacks = list(dict.fromkeys(stack for stack, number in grid.places if number >= 0))
    for stack in stacks:
        rows = [r for r, (name, n) in enumerate(grid.places) if name == stack and n >= 0]
        axes.annotate(
            printable(stack.rstrip(".")),
            (0, (rows[0] + rows[-1]) / 2),
            xytext=(-32, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="center",
            fontsize=7,
            annotation_clip=False,
        )
