"""Charts of a search as inline SVG text, in two widths: for a screen and for a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from ..drawing.axes import Axis
from ..drawing.colors import color
from ..drawing.html_page import html_page, safe
from ..messages import printable
from .candidates import AVERAGE, PARENT, STANDS
from .charts import Chart, Charts

WIDE, NARROW = 760, 312
"""Pixels of the large charts: within 830 and 360 pixels of a page with its margins."""
SMALL = (312, 230)
TOP, BOTTOM, LINE = 12, 40, 15
COLORS = "viridis"
STYLE = """<style>
.chart { font-size: 12px; max-width: 100%; } .chart text { font-size: 12px; }
.chart .grid { stroke: var(--line); } .chart .axis { stroke: var(--dim); fill: none; }
.chart .trial { fill: #3b82b6; fill-opacity: .75; }
.chart .best { fill: #d9480f; stroke: var(--page); }
.chart .record { fill: none; stroke: #d9480f; stroke-width: 2; }
.chart .level { stroke: var(--dim); stroke-width: 1.5; } .chart .parent { stroke-dasharray: 6 4; }
.chart .average { stroke-dasharray: 2 3; } .chart .recipe { stroke-dasharray: 9 3 2 3; }
.narrow { display: none; } .charts { display: flex; flex-wrap: wrap; gap: 1rem; }
@media (max-width: 800px) { .wide { display: none; } .narrow { display: block; } }
</style>"""
DASHES = {PARENT: "parent", AVERAGE: "average", STANDS: "recipe"}


def page(charts: Charts, title: str, summary: list[str]) -> str:
    """Return the content of an HTML file with all charts, below a summary."""
    lines = "\n".join(map(safe, summary))
    body = [STYLE, f"<pre>{lines}</pre>"]
    for chart in (charts.progress, *([charts.plane] if charts.plane else [])):
        body.append(f"<h2>{safe(chart.title)}</h2>")
        body += (
            f'<div class="{kind}">{svg(chart, width, height)}</div>'
            for kind, width, height in (("wide", WIDE, 330), ("narrow", NARROW, 260))
        )
    if charts.values:
        body.append('<h2>Score against each value</h2><div class="charts">')
        body += (f"<div>{svg(chart, *SMALL)}</div>" for chart in charts.values)
        body.append("</div>")
    body += (f'<p class="dim">{safe(note)}</p>' for note in charts.notes)
    return html_page(title, "\n".join(body))


def svg(chart: Chart, width: int, height: int) -> str:
    """Return one chart with its axes and its key below."""
    return _Drawing(chart, width, height).text()


class _Drawing:
    """Positions of one chart in pixels."""

    def __init__(self, chart: Chart, width: int, height: int) -> None:
        self.chart = chart
        labels = [label for _, label in chart.y.ticks]
        self.left = 26 + 7 * max(map(len, labels), default=1)
        # Labels of choices stand along the axis, and may be long.
        self.right = width - (14 if chart.shades is None else 70)
        self.top, self.bottom = TOP, height - BOTTOM
        self.width = width
        self.keys = list(_keys(chart, (width - self.left) // 7))
        self.height = height + LINE * len(self.keys)

    def x(self, value: float) -> float:
        return self.left + self.chart.x.fraction(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - self.chart.y.fraction(value) * (self.bottom - self.top)

    def text(self) -> str:
        parts = [*self.axes(), *self.levels(), *self.line(), *self.marks()]
        if self.chart.shades is not None:
            parts += self.scale(self.chart.shades)
        parts += self.key()
        count = len(self.chart.marks)
        best = next((mark.text for mark in self.chart.marks if mark.is_best), "none")
        label = safe(f"{self.chart.title}: {count} trials, best {best}")
        size = f'width="{self.width}" height="{self.height}"'
        return f'<svg class="chart" role="img" aria-label="{label}" {size}>{"".join(parts)}</svg>'

    def axes(self) -> Iterator[str]:
        for value, label in self.chart.y.ticks:
            y = self.y(value)
            yield f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>'
            place = f'x="{self.left - 5}" y="{y + 4:.1f}"'
            yield f'<text {place} text-anchor="end">{safe(label)}</text>'
        room = (self.right - self.left) / max(1, len(self.chart.x.ticks)) // 7
        for value, label in self.chart.x.ticks:
            shown = label if len(label) <= room else f"{label[: max(1, int(room) - 1)]}…"
            place = f'x="{self.x(value):.1f}" y="{self.bottom + 16}"'
            yield f'<path class="grid" d="M{self.x(value):.1f} {self.bottom}v4"/>'
            yield f'<text {place} text-anchor="middle">{safe(shown)}</text>'
        yield f'<path class="axis" d="M{self.left} {self.top}V{self.bottom}H{self.right}"/>'
        middle = (self.left + self.right) / 2
        room = (self.right - self.left) // 7
        yield (
            f'<text x="{middle:.1f}" y="{self.bottom + 33}" text-anchor="middle">'
            f"{safe(cut(self.chart.x.label, room))}</text>"
        )
        middle = (self.top + self.bottom) / 2
        room = (self.bottom - self.top) // 7
        yield (
            f'<text transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">'
            f"{safe(cut(self.chart.y.label, room))}</text>"
        )

    def levels(self) -> Iterator[str]:
        for level in self.chart.levels:
            yield (
                f'<path class="level {DASHES[level.kind]}" d="M{self.left} {self.y(level.y):.1f}'
                f'H{self.right}"><title>{safe(f"{level.name}: {level.y:.6g}")}</title></path>'
            )

    def line(self) -> Iterator[str]:
        if self.chart.steps:
            points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in self.chart.steps)
            yield f'<polyline class="record" points="{points}"/>'

    def marks(self) -> Iterator[str]:
        # The best one last, so that others do not cover it.
        for mark in sorted(self.chart.marks, key=lambda mark: mark.is_best):
            style = "best" if mark.is_best else "trial"
            size = 6 if mark.is_best else 4
            fill = ""
            if mark.shade is not None:
                fill = f' style="fill:{color(COLORS, mark.shade)};fill-opacity:1"'
                size += 1
                if mark.is_best:
                    fill = fill.replace(
                        ";fill-opacity", ";stroke:#d9480f;stroke-width:3;fill-opacity"
                    )
            yield (
                f'<circle class="{style}" cx="{self.x(mark.x):.1f}" cy="{self.y(mark.y):.1f}" '
                f'r="{size}"{fill}><title>{safe(mark.text)}</title></circle>'
            )

    def scale(self, shades: Axis) -> Iterator[str]:
        """Yield the bar of the colors."""
        steps, left = 32, self.right + 12
        tall = (self.bottom - self.top) / steps
        for step in range(steps):
            y = self.bottom - (step + 1) * tall
            fill = color(COLORS, step / (steps - 1))
            size = f'width="10" height="{tall + 0.5:.2f}"'
            yield f'<rect x="{left}" y="{y:.1f}" {size} fill="{fill}"/>'
        for value, label in shades.ticks:
            y = self.bottom - shades.fraction(value) * (self.bottom - self.top)
            yield f'<text x="{left + 14}" y="{y + 4:.1f}">{safe(label)}</text>'

    def key(self) -> Iterator[str]:
        for number, (style, text) in enumerate(self.keys):
            y = self.height - LINE * (len(self.keys) - number) + 10
            if style == "best":
                yield f'<circle class="best" cx="{self.left + 14}" cy="{y - 4}" r="6"/>'
            else:
                yield f'<path class="{style}" d="M{self.left} {y - 4}h28"/>'
            yield f'<text x="{self.left + 34}" y="{y}">{escape(text)}</text>'


def _keys(chart: Chart, room: int) -> Iterator[tuple[str, str]]:
    """Yield style and text of each line of the key."""
    if chart.steps:
        yield "record", "best so far"
    for level in sorted(chart.levels, key=lambda level: -level.y):
        yield f"level {DASHES[level.kind]}", cut(f"{level.name} {level.y:.5g}", room - 5)
    best = next((mark.text for mark in chart.marks if mark.is_best), None)
    if best is not None and (chart.steps or chart.shades):
        yield "best", cut(f"best {best}", room - 5)


def cut(text: str, most: int) -> str:
    """Return printable text of at most `most` characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: max(1, int(most) - 1)]}…"
