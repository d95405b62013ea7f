"""Heat maps by layer and component, fit for a paper: PNG, PDF or SVG through matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .facts import Comparison
from .grid import COLOURS, Grid, grid_of, limits, log_ticks
from .metrics import Metric

PANELS_PER_LINE = 9
MOST_LABELS = 40
SHORT = {"linear attention/SSM": "linear/SSM", "embeddings": "embed."}


def figure(comparison: Comparison, chosen: Sequence[Metric]) -> Any:
    """A matplotlib figure: groups of panels that share a colour bar, in lines."""
    from matplotlib.figure import Figure

    grid = grid_of(comparison)
    groups = [
        [m for m in chosen if m.group == name] for name in dict.fromkeys(m.group for m in chosen)
    ]
    lines: list[list[list[Metric]]] = [[]]
    for group in groups:
        if lines[-1] and sum(map(len, lines[-1])) + len(group) > PANELS_PER_LINE:
            lines.append([])
        lines[-1].append(group)
    tall = min(9.0, max(1.3, 0.13 * len(grid.places)))
    panel = 0.2 + 0.19 * len(grid.components)
    wide = [sum(panel * len(g) + 0.75 for g in line) + 1.1 for line in lines]
    # Each line is drawn in inches, so that labels fit whatever is in the panels.
    total = (tall + 1.65) * len(lines)
    drawn = Figure(figsize=(max(wide), total))
    for number, line in enumerate(lines):
        bottom, left = total - (number + 1) * (tall + 1.65) + 1.05, 1.1
        for place, group in enumerate(line):
            box = _Box(left, bottom, panel, tall, max(wide), total)
            _panels(drawn, grid, group, box, place == 0)
            left += panel * len(group) + 0.75
    return drawn


@dataclass(frozen=True)
class _Box:
    """Where a group begins, and the size of its panels and of the figure, in inches."""

    left: float
    bottom: float
    wide: float
    tall: float
    figure_wide: float
    figure_tall: float

    def axes(self, drawn: Any, left: float, wide: float) -> Any:
        size = (self.figure_wide, self.figure_tall, self.figure_wide, self.figure_tall)
        spans = (self.left + left, self.bottom, wide, self.tall)
        return drawn.add_axes([span / whole for span, whole in zip(spans, size, strict=True)])


def _panels(drawn: Any, grid: Grid, group: Sequence[Metric], box: _Box, first: bool) -> None:
    """The panels of one group, and their colour bar."""
    import matplotlib
    from matplotlib.colors import LogNorm, Normalize

    values = [grid.values(metric) for metric in group]
    low, high, log = limits(group[0], [v for panel in values for row in panel for v in row])
    norm = LogNorm(low, high) if log else Normalize(low, high)
    colours = matplotlib.colormaps[COLOURS[group[0].scale]].with_extremes(bad="none")
    for number, (metric, panel) in enumerate(zip(group, values, strict=True)):
        axes = box.axes(drawn, number * box.wide, box.wide - 0.1)
        image = axes.imshow(panel, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
        _label(axes, grid, metric.of, labelled=first and number == 0)
    middle = (box.left + (box.wide * len(group) - 0.1) / 2) / box.figure_wide
    above = (box.bottom + box.tall + 0.32) / box.figure_tall
    drawn.text(middle, above, group[0].group, ha="center", fontsize=9, fontweight="bold")
    bar_axes = box.axes(drawn, box.wide * len(group) - 0.05, 0.09)
    bar = drawn.colorbar(image, cax=bar_axes)
    bar.ax.tick_params(labelsize=6, length=2, pad=1)
    bar.outline.set_linewidth(0.4)
    ticks = log_ticks(low, high) if log else bar.get_ticks()
    bar.set_ticks([tick for tick in ticks if low <= tick <= high], minor=False)
    bar.ax.yaxis.set_minor_formatter(lambda value, _: "")
    unit = (100, "%") if group[0].percent else (1, "")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{unit[0] * value:.3g}{unit[1]}")


def _label(axes: Any, grid: Grid, title: str, labelled: bool) -> None:
    axes.set_title(title if len(title) < 22 else title[:20] + "…", fontsize=7, pad=3)
    components = [SHORT.get(name, name) for name in grid.components]
    axes.set_xticks(range(len(components)), components, rotation=90, fontsize=7)
    axes.patch.set(hatch="//////", edgecolor="0.85", facecolor="white")  # no such part
    axes.tick_params(length=1.5, width=0.4, pad=1.5)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    if not labelled:
        axes.set_yticks([])
        return
    every = max(1, math.ceil(len(grid.places) / MOST_LABELS))
    shown = [
        (row, f"{number}" if number >= 0 else stack)
        for row, (stack, number) in enumerate(grid.places)
        if number < 0 or number % every == 0
    ]
    axes.set_yticks([row for row, _ in shown], [text for _, text in shown], fontsize=6)
    stacks = list(dict.fromkeys(stack for stack, number in grid.places if number >= 0))
    for stack in stacks:
        rows = [r for r, (name, n) in enumerate(grid.places) if name == stack and n >= 0]
        axes.annotate(
            stack.rstrip("."), (0, (rows[0] + rows[-1]) / 2), xytext=(-32, 0),
            xycoords=("axes fraction", "data"), textcoords="offset points",
            rotation=90, ha="center", va="center", fontsize=7, annotation_clip=False,
        )  # fmt: skip
