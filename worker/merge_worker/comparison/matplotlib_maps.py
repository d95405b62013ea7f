"""Heat maps by layer and component in print quality: PNG, PDF or SVG, drawn by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

from ..messages import printable
from .figures import Comparison
from .grid import (
    COLOR_MAPS,
    Grid,
    elided,
    grid_of,
    heading_of,
    limits,
    log_ticks,
    pair_matrices,
    title_lines,
)
from .metrics import FIGURES, Metric

WIDE = 8.3
"""Inches of a figure. In a page 830 pixels wide, SMALL is then 9.7 pixels high."""
SMALL, LARGE = 7, 9
"""Points of the smallest letters, and of headings."""
MOST_LABELS = 26
MOST_VALUES = 8
"""Models with numbers in the cells of their matrix."""
SHORT = {"linear attention/SSM": "linear/SSM", "embeddings": "embed."}
TITLE, ABOVE, BELOW, LEFT, BESIDE = 0.3, 0.62, 0.85, 0.62, 0.9
"""Inches: the title, and the space around the panels of a line for their titles, the names of
components, the names of layers, and a color bar."""
GAP, HEAD = 0.1, 0.35


def figure(comparison: Comparison, chosen: Sequence[Metric]) -> Any:
    """Return a matplotlib figure: a matrix of the models, and lines of groups of panels.

    Each group has one color bar; the groups of a line are stretched over the whole width.
    """
    from matplotlib.figure import Figure

    grid = grid_of(comparison)
    lines = _lines([list(metrics) for _, metrics in groupby(chosen, lambda m: m.group)], grid)
    matrices = pair_matrices(comparison)
    count = len(comparison.models.own)
    square = min(2.4, max(1.0, 0.16 * count)) if matrices else 0.0
    names = [elided(printable(comparison.models.labels[i]), 18) for i in comparison.models.own]
    below = 0.25 + 0.062 * max(map(len, names)) if matrices else 0.0
    # Layers stay distinct, and two lines of panels fit a page.
    tall = min(3.6, max(1.0, 0.14 * len(grid.places)))
    top = TITLE + (square + HEAD + below if matrices else 0)
    total = top + (tall + ABOVE + BELOW) * len(lines) + 0.2
    drawn = Figure(figsize=(WIDE, total))
    title = elided(heading_of(comparison), 96)
    drawn.text(0.012, 1 - 0.24 / total, title, fontsize=LARGE, fontweight="bold")
    for number, (metric, values) in enumerate(matrices):
        left = 0.15 + 0.062 * max(map(len, names)) + number * WIDE / 2
        box = _Box(left, total - TITLE - HEAD - square, square, square, total)
        _matrix(drawn, metric, values, names, box)
    for number, line in enumerate(lines):
        bottom, left = total - top - number * (tall + ABOVE + BELOW) - ABOVE - tall, LEFT
        room = WIDE - LEFT - BESIDE * len(line)
        panel = min(2.2, room / sum(map(len, line)))
        for place, group in enumerate(line):
            box = _Box(left, bottom, panel, tall, total)
            _panels(drawn, grid, group, box, place == 0)
            left += panel * len(group) + BESIDE
    drawn.text(LEFT / WIDE, 0.06 / total, _legend(grid, chosen), fontsize=SMALL, color="0.35")
    return drawn


def _lines(groups: Sequence[list[Metric]], grid: Grid) -> list[list[list[Metric]]]:
    """Deal groups to as few lines as they fit in, about evenly."""
    panel = 0.2 + 0.15 * len(grid.components)
    spans = [panel * len(group) + BESIDE for group in groups]
    for count in range(1, len(groups) + 1):
        size = math.ceil(len(groups) / count)
        lines = [list(groups[i : i + size]) for i in range(0, len(groups), size)]
        if max(sum(spans[i : i + size]) for i in range(0, len(groups), size)) <= WIDE - LEFT:
            return lines
    return [[group] for group in groups]


def _matrix(
    drawn: Any, metric: Metric, values: Sequence[Sequence[float]], names: Sequence[str], box: _Box
) -> None:
    """Draw the figure of every two models, with numbers while they fit."""
    ends = limits(metric, [value for row in values for value in row])
    axes = box.axes(drawn, 0, box.wide, box.tall)
    axes.patch.set_facecolor("0.9")
    image = axes.imshow(values, aspect="auto", **_colors(metric, ends))
    for side, rotation in (("x", 90), ("y", 0)):
        ticks = {f"{side}ticks": range(len(names)), f"{side}ticklabels": names}
        axes.set(**ticks)
        axes.tick_params(axis=side, rotation=rotation)
    _thin(axes)
    if len(names) <= MOST_VALUES:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    _number(axes, (j, i), value, metric, image)
    axes.set_title(f"{metric.group} of all parameters", fontsize=LARGE, fontweight="bold", pad=6)
    _bar(drawn, image, box.axes(drawn, box.wide + 0.08, 0.09, box.tall), metric, ends)


def _number(axes: Any, at: tuple[int, int], value: float, metric: Metric, image: Any) -> None:
    red, green, blue, _ = image.to_rgba(value)
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
    text = f"{100 * value:.0f}%" if metric.percent else f"{value:.2f}"
    axes.text(
        *at, text, ha="center", va="center", fontsize=SMALL, color="white" if dark else "black"
    )


def _colors(metric: Metric, ends: tuple[float, float, bool]) -> dict[str, Any]:
    """Return the colors of `imshow`."""
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize

    low, high, log = ends
    return {
        "cmap": matplotlib.colormaps[COLOR_MAPS[metric.scale]].with_extremes(bad="none"),
        "norm": LogNorm(low, high) if log else Normalize(low, high),
        "interpolation": "nearest",
    }


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
    figure_tall: float

    def axes(self, drawn: Any, left: float, wide: float, tall: float) -> Any:
        """Add axes of this size at the top of the group."""
        size = (WIDE, self.figure_tall, WIDE, self.figure_tall)
        spans = (self.left + left, self.bottom + self.tall - tall, wide, tall)
        return drawn.add_axes([span / whole for span, whole in zip(spans, size, strict=True)])


def _panels(drawn: Any, grid: Grid, group: Sequence[Metric], box: _Box, first: bool) -> None:
    """Draw the panels of one group, and their color bar."""
    values = [grid.values(metric) for metric in group]
    ends = limits(group[0], [v for panel in values for row in panel for v in row])
    most = max(6, int((box.wide - GAP) / 0.062))
    for number, (metric, panel) in enumerate(zip(group, values, strict=True)):
        axes = box.axes(drawn, number * box.wide, box.wide - GAP, box.tall)
        _draw_background(axes, grid)
        image = axes.imshow(panel, aspect="auto", **_colors(metric, ends))
        _label(axes, grid, "\n".join(title_lines(metric.panel, most)), first and number == 0)
    middle = (box.left + (box.wide * len(group) - GAP) / 2) / WIDE
    above = (box.bottom + box.tall + 0.38) / box.figure_tall
    drawn.text(middle, above, group[0].group, ha="center", fontsize=LARGE, fontweight="bold")
    bar_axes = box.axes(drawn, box.wide * len(group) - 0.03, 0.09, min(box.tall, 2.2))
    _bar(drawn, image, bar_axes, group[0], ends)


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
    bar.ax.tick_params(labelsize=SMALL, length=2, pad=1)
    bar.outline.set_linewidth(0.4)
    ticks = log_ticks(low, high) if log else bar.get_ticks()
    bar.set_ticks(_spread([t for t in ticks if low <= t <= high], ends), minor=False)
    bar.ax.yaxis.set_minor_formatter(lambda value, _: "")
    unit = (100, "%") if metric.percent else (1, "")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{unit[0] * value:.3g}{unit[1]}")
    bar.set_label(FIGURES[metric.group].label, fontsize=SMALL, labelpad=2)


def _spread(ticks: Sequence[float], ends: tuple[float, float, bool]) -> list[float]:
    """Return ticks that do not touch on a bar of an inch: an eighth of it apart."""
    low, high, log = ends
    scale = math.log if log else float
    kept: list[float] = []
    for tick in ticks:
        if not kept or scale(tick) - scale(kept[-1]) >= (scale(high) - scale(low)) / 8:
            kept.append(tick)
    return kept


def _thin(axes: Any) -> None:
    axes.tick_params(length=1.5, width=0.4, pad=1.5, labelsize=SMALL)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def _label(axes: Any, grid: Grid, title: str, labeled: bool) -> None:
    axes.set_title(title, fontsize=SMALL, pad=3, linespacing=1.1)
    components = [SHORT.get(name, name) for name in grid.components]
    axes.set_xticks(range(len(components)), components, rotation=90)
    _thin(axes)
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
    axes.set_yticks([row for row, _ in shown], [text for _, text in shown])
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
            fontsize=SMALL,
            annotation_clip=False,
        )
