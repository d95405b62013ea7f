"""Pictures of routing: for each group of texts, a map of layers and experts."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..drawing.colors import color
from ..drawing.files import drawing_errors, print_settings
from ..drawing.html_page import html_page, safe
from .routing import Routing
from .routing_table import heading, lines, names_of_experts

COLORS = "cividis"
CELL, TALL, TOP = 26, 14, 34


def draw(routing: Routing, title: str, file: str) -> None:
    """Write the picture, or the page, that the name of the file asks for. OutputError."""
    with drawing_errors(file):
        if Path(file).suffix.lower() == ".html":
            Path(file).write_text(html_page(title, _body(routing)), encoding="utf-8")
        else:
            _figure(routing, title, file)


def _shares(routing: Routing, group: int) -> list[list[float]]:
    tokens = routing.tokens[group]
    return [[count / tokens for count in layer[group]] for layer in routing.reached]


def _figure(routing: Routing, title: str, file: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names, count = names_of_experts(routing), len(routing.groups)
    width = 1.6 + count * (0.6 + 0.3 * routing.experts)
    with print_settings():
        figure = Figure(figsize=(width, 2.2 + 0.16 * len(routing.reached)), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False, sharey=True)[0]
        for number, (axes, group) in enumerate(zip(panels, routing.groups, strict=True)):
            image = axes.imshow(
                _shares(routing, number), vmin=0, vmax=1, cmap=COLORS, aspect="auto"
            )
            axes.set_title(f"texts: {group.name}", fontsize=9)
            axes.set_xticks(range(routing.experts), names, rotation=90, fontsize=8)
        panels[0].set_ylabel("layer")
        panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=list(panels), label="share of tokens")
        figure.suptitle(title, fontsize=10)
        figure.savefig(file, dpi=200, facecolor="white")


def _body(routing: Routing) -> str:
    panels = "".join(_panel(routing, number) for number in range(len(routing.groups)))
    table = "\n".join(lines(routing)[1:])
    return f"<p>{safe(heading(routing))}</p><p>{panels}</p><pre>{safe(table)}</pre>"


def _panel(routing: Routing, number: int) -> str:
    names, group = names_of_experts(routing), routing.groups[number]
    left, high = 34, TALL * len(routing.reached)
    shapes = [f'<text x="2" y="14">texts: {safe(group.name)}</text>']
    for layer, row in enumerate(_shares(routing, number)):
        y = TOP + layer * TALL
        shapes.append(f'<text x="{left - 4}" y="{y + 11}" text-anchor="end">{layer}</text>')
        for expert, share in enumerate(row):
            box = f'x="{left + expert * CELL}" y="{y}" width="{CELL}" height="{TALL}"'
            text = safe(f"layer {layer}, {names[expert]}: {100 * share:.0f} %")
            shapes.append(f'<rect {box} fill="{color(COLORS, share)}"><title>{text}</title></rect>')
    for expert, name in enumerate(names):
        at = f"{left + expert * CELL + CELL / 2 + 3.5:g} {TOP + 6 + high}"
        shapes.append(
            f'<text transform="translate({at}) rotate(-90)" text-anchor="end">{safe(name)}</text>'
        )
    longest = max(map(len, names))
    wide = left + max(CELL * routing.experts, 7 * (len(group.name) + 7)) + 12
    label = escape(f"layers and experts that tokens of {group.name} reach")
    size = f'width="{wide}" height="{TOP + high + 12 + 7 * longest}"'
    return f'<svg role="img" aria-label="{label}" {size}>{"".join(shapes)}</svg>'
