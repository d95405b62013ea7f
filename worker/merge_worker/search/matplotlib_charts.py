"""Charts of a search in print quality: PNG, PDF or SVG, drawn by matplotlib."""

from __future__ import annotations

import math
from typing import Any

from ..drawing.axes import Axis
from ..messages import printable
from .candidates import AVERAGE, PARENT, STANDS
from .charts import Chart, Charts
from .svg_charts import COLORS, cut

WIDTH, TALL, SMALL = 6.4, 3.1, 2.3
"""Inches: the text stays legible where the picture is shown 360 pixels wide."""
FONT = 11
COLUMNS = 2
DASHES: dict[str, Any] = {PARENT: (0, (5, 3)), AVERAGE: (0, (1, 2)), STANDS: (0, (7, 2, 1, 2))}
TRIALS, BEST = "#3b82b6", "#d9480f"


def figure(charts: Charts, title: str) -> Any:
    """Return a matplotlib figure: the progress on top, then the plane, then each value."""
    from matplotlib.figure import Figure

    rows = math.ceil(len(charts.values) / COLUMNS)
    keys = len(charts.progress.levels) + 2
    tall = [TALL + 0.2 * math.ceil(keys / 2), *([TALL] if charts.plane else []), *[SMALL] * rows]
    drawn = Figure(figsize=(WIDTH, sum(tall) + 0.4), layout="constrained")
    drawn.suptitle(cut(title, 60), fontsize=FONT + 1)
    grid = drawn.add_gridspec(len(tall), COLUMNS, height_ratios=tall)
    _draw(drawn, drawn.add_subplot(grid[0, :]), charts.progress)
    if charts.plane:
        _draw(drawn, drawn.add_subplot(grid[1, :]), charts.plane)
    first = len(tall) - rows
    for number, chart in enumerate(charts.values):
        place = grid[first + number // COLUMNS, number % COLUMNS]
        axes = drawn.add_subplot(place)
        _draw(drawn, axes, chart, 26)
        if number % COLUMNS:
            axes.set_ylabel("")
    if charts.notes:
        drawn.supxlabel(printable("; ".join(charts.notes)), fontsize=FONT - 2, color="0.35")
    return drawn


def _draw(drawn: Any, axes: Any, chart: Chart, room: int = 60) -> None:
    """Draw one chart; `room` is how many characters stand below it side by side."""
    _scale(axes, "x", chart.x, room // max(1, len(chart.x.ticks)))
    _scale(axes, "y", chart.y, 14)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for level in sorted(chart.levels, key=lambda level: -level.y):
        label = cut(f"{level.name} {level.y:.5g}", 34)
        axes.axhline(level.y, color="0.35", linestyle=DASHES[level.kind], lw=1.3, label=label)
    if chart.steps:
        axes.plot(*zip(*chart.steps, strict=True), color=BEST, linewidth=1.8, label="best so far")
    _marks(drawn, axes, chart)
    if chart.levels or chart.steps:
        # Below the chart, so that it covers no trial.
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=2,
            fontsize=FONT - 2,
            frameon=False,
        )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _marks(drawn: Any, axes: Any, chart: Chart) -> None:
    others = [mark for mark in chart.marks if not mark.is_best]
    best = [mark for mark in chart.marks if mark.is_best]
    x, y = [mark.x for mark in others], [mark.y for mark in others]
    if chart.shades is None:
        axes.scatter(x, y, s=22, color=TRIALS, alpha=0.75, linewidths=0, zorder=3)
        where = [mark.x for mark in best], [mark.y for mark in best]
        axes.scatter(*where, s=52, color=BEST, edgecolors="white", zorder=4)
        return
    points = [*others, *best]
    image = axes.scatter(
        [mark.x for mark in points],
        [mark.y for mark in points],
        c=[mark.shade for mark in points],
        s=[90 if mark.is_best else 48 for mark in points],
        edgecolors=[BEST if mark.is_best else "none" for mark in points],
        linewidths=2,
        cmap=COLORS,
        vmin=0,
        vmax=1,
        zorder=3,
    )
    bar = drawn.colorbar(image, ax=axes, pad=0.02)
    bar.set_ticks([chart.shades.fraction(value) for value, _ in chart.shades.ticks])
    bar.set_ticklabels([label for _, label in chart.shades.ticks], fontsize=FONT - 1)
    bar.set_label(cut(chart.shades.label, 26), fontsize=FONT)
    bar.outline.set_visible(False)


def _scale(axes: Any, direction: str, axis: Axis, room: int) -> None:
    if axis.log:
        getattr(axes, f"set_{direction}scale")("log")
    getattr(axes, f"set_{direction}lim")(axis.low, axis.high)
    labels = [cut(label, max(room, 5)) for _, label in axis.ticks]
    set_ticks = getattr(axes, f"set_{direction}ticks")
    set_ticks([value for value, _ in axis.ticks], labels, fontsize=FONT - 1)
    set_ticks([], minor=True)
    getattr(axes, f"set_{direction}label")(cut(axis.label, 30), fontsize=FONT)
