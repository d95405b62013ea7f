"""The loss of every window as a picture (PNG, PDF, SVG) or as one self-contained page (HTML)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..drawing.axes import number_axis
from ..drawing.files import drawing_errors, print_settings
from ..drawing.html_page import html_page, safe
from ..messages import printable
from .perplexity import Measured
from .perplexity_table import table
from .statistics import difference

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D6570")
"""Colors that people with any colour vision tell apart (Okabe and Ito)."""
WIDE, HIGH, LEFT, BELOW = 860, 300, 60, 40


def draw(measured: Measured, file: str) -> None:
    """Write the picture or page. Raises OutputError."""
    with drawing_errors(file):
        if Path(file).suffix.lower() == ".html":
            Path(file).write_text(page(measured), encoding="utf-8")
        else:
            with print_settings():
                figure(measured).savefig(file, dpi=200, bbox_inches="tight", facecolor="white")


def series(measured: Measured) -> tuple[str, list[list[float]]]:
    """Return the unit, and for each model the loss of every window in it."""
    if measured.same_tokens:
        return "nats per token", [
            [w.nats / max(1, w.tokens) for w in model.windows] for model in measured.models
        ]
    return "bits per byte", [
        [w.nats / math.log(2) / max(1, w.nbytes) for w in model.windows]
        for model in measured.models
    ]


def names(measured: Measured) -> list[str]:
    """Return each model's name with its perplexity or bits per byte."""
    return [
        f"{printable(model.label)}: "
        + (
            f"perplexity {model.perplexity:.4g}"
            if measured.same_tokens
            else f"{model.bits_per_byte.value:.4g} bits per byte"
        )
        for model in measured.models
    ]


def gaps(measured: Measured) -> list[tuple[str, float, float]]:
    """Return name, difference to the first model and standard error of all other models."""
    first = measured.models[0]
    found = [(m.label, difference(m, first, measured.same_tokens)) for m in measured.models[1:]]
    return [(printable(label), gap.value, gap.error or 0.0) for label, gap in found]


def figure(measured: Measured) -> Any:
    """Return a matplotlib figure: losses of windows, and differences to the first model."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    unit, lines = series(measured)
    others = gaps(measured)
    drawn = Figure(figsize=(7.2 if others else 5.0, 2.6))
    grid = drawn.add_gridspec(1, 2 if others else 1, width_ratios=(3, 1.4)[: 1 + bool(others)])
    axes = drawn.add_subplot(grid[0])
    size = 2.5 if len(lines[0]) <= 200 else 0
    for number, (name, values) in enumerate(zip(names(measured), lines, strict=True)):
        places = range(1, len(values) + 1)
        color = COLORS[number % len(COLORS)]
        axes.plot(
            places, values, color=color, linewidth=0.8, marker="o", markersize=size, label=name
        )
    axes.set_title("Loss of each window", fontsize=9, fontweight="bold")
    axes.set_xlabel("window, in the order of the text", fontsize=7)
    axes.set_ylabel(unit, fontsize=7)
    below = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "ncols": 2}
    axes.legend(fontsize=6, frameon=False, borderaxespad=0, **below)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style(axes)
    if others:
        _draw_gaps(drawn.add_subplot(grid[1]), others, unit, printable(measured.models[0].label))
    drawn.subplots_adjust(wspace=0.55)
    return drawn


def _draw_gaps(
    axes: Any, others: Sequence[tuple[str, float, float]], unit: str, first: str
) -> None:
    for number, (_, value, error) in enumerate(others):
        color = COLORS[(number + 1) % len(COLORS)]
        axes.errorbar(
            value, number, xerr=2 * error, fmt="o", color=color, markersize=3, linewidth=0.8
        )
    axes.axvline(0, color="0.4", linewidth=0.6)
    axes.set_yticks(range(len(others)), [_cut(name) for name, _, _ in others], fontsize=6)
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.set_title(f"Difference to {_cut(first)}", fontsize=9, fontweight="bold")
    axes.set_xlabel(f"{unit}, ± 2 standard errors of paired windows", fontsize=6)
    _style(axes)


def _style(axes: Any) -> None:
    axes.tick_params(labelsize=6, length=2, width=0.4, pad=1.5)
    for name, spine in axes.spines.items():
        spine.set_linewidth(0.4)
        spine.set_visible(name in ("left", "bottom"))


def _cut(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"


def page(measured: Measured) -> str:
    """Return the content of the page."""
    unit, lines = series(measured)
    labels = names(measured)
    keys = "".join(
        f'<li><span style="color:{COLORS[n % len(COLORS)]}">●</span> {escape(label)}</li>'
        for n, label in enumerate(labels)
    )
    body = [
        f'<pre tabindex="0" aria-label="figures">{escape(table(measured))}</pre>',
        f"<h2>Loss of each window ({escape(unit)})</h2>",
        f'<ul style="list-style:none;padding:0">{keys}</ul>',
        _chart(lines, labels, unit, measured.windows),
    ]
    title = "Perplexity: " + " · ".join(model.label for model in measured.models)
    return html_page(title, "\n".join(body))


def _chart(
    lines: Sequence[Sequence[float]], labels: Sequence[str], unit: str, where: Sequence[str]
) -> str:
    """Return the windows of all models as an inline SVG, with a title on each point."""
    axis = number_axis(unit, [value for values in lines for value in values])
    count = len(lines[0])

    def at(place: float, value: float) -> tuple[float, float]:
        across = LEFT + (WIDE - LEFT - 10) * (place + 0.5) / count
        return across, 10 + (HIGH - BELOW) * (1 - axis.fraction(value))

    shapes = []
    for value, text in axis.ticks:
        y = at(0, value)[1]
        shapes.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
        shapes.append(f'<path class="frame" d="M{LEFT} {y:.1f}H{WIDE - 10}"/>')
    for number, values in enumerate(lines):
        color = COLORS[number % len(COLORS)]
        points = [at(place, value) for place, value in enumerate(values)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{color}"/>')
        name = labels[number].rpartition(": ")[0]
        shapes += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"><title>'
            f"{escape(name)}, window {place + 1} ({safe(where[place])}): {values[place]:.4f}"
            f"</title></circle>"
            for place, (x, y) in enumerate(points)
        ]
    shapes.append(
        f'<text x="{WIDE / 2}" y="{HIGH - 4}" text-anchor="middle">windows 1 to {count}, in the '
        f"order of the text</text>"
    )
    label = escape(f"{unit} of {count} windows, from {min(map(min, lines)):.4g} to ") + (
        f"{max(map(max, lines)):.4g}"
    )
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDE} {HIGH}" '
        f'style="max-width:100%;width:{WIDE}px">{"".join(shapes)}</svg>'
    )
