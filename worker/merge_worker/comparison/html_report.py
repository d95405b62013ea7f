"""A comparison as one self-contained HTML file, without network, fonts or libraries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from ..drawing.colors import color
from ..drawing.html_page import html_page, safe
from . import svg_maps
from .advice import Advice
from .figures import Comparison, Row
from .grid import COLOR_MAPS, grid_of, heading_of, limits, pair_matrices
from .metrics import LEGENDS, Metric, shown
from .table import heading

MOST_TENSORS = 5000
"""Rows above which browsers become slow; `--json` lists all of them."""


def page(comparison: Comparison, chosen: Sequence[Metric], advice: Advice) -> str:
    """Return the content of the file."""
    body = [_facts(comparison), _advice(advice), *_matrices(comparison)]
    body += _maps(comparison, chosen)
    body += ["<h2>By layer and component</h2>", _table("cells", comparison, chosen)]
    body += _tensors(comparison, chosen)
    return html_page(heading_of(comparison), "\n".join(body))


def _facts(comparison: Comparison) -> str:
    rows = (line.split(None, 1) for line in heading(comparison).splitlines())
    lines = (f"<dt>{safe(row[0])}</dt><dd>{safe(row[-1])}</dd>" for row in rows)
    return f"<dl>{''.join(lines)}</dl>"


def _advice(advice: Advice) -> str:
    parts = [
        f'<p class="warning"><strong>Warning:</strong> {safe(line)}</p>' for line in advice.warnings
    ]
    parts.append(f"<h2>{safe(advice.question)}</h2><ul>")
    parts += [f"<li>{safe(line)}</li>" for line in advice.findings] + ["</ul>"]
    for name, text in (("recipe", advice.recipe), ("search", advice.search)):
        if text:
            lines = "\n".join(map(safe, text.split("\n")))
            parts.append(f'<pre tabindex="0" aria-label="suggested {name}">{lines}</pre>')
    return "\n".join(parts)


def _matrices(comparison: Comparison) -> Iterable[str]:
    """Yield a table of all models by all models for each figure of pairs."""
    names = [safe(comparison.models.labels[i]) for i in comparison.models.own]
    matrices = pair_matrices(comparison)
    if matrices:
        yield "<h2>Model by model</h2>"
    for metric, values in matrices:
        ends = limits(metric, [value for row in values for value in row])
        head = "".join(f'<th scope="col">{name}</th>' for name in names)
        label = f"{metric.group} of every two models"
        yield f'<h3>{metric.group}</h3><p class="dim">{safe(LEGENDS[metric.group])}</p>'
        yield f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        yield f'<table class="matrix"><thead><tr><td></td>{head}</tr></thead><tbody>'
        for name, row in zip(names, values, strict=True):
            cells = "".join(_matrix_cell(metric, value, ends) for value in row)
            yield f'<tr><th scope="row" class="word">{name}</th>{cells}</tr>'
        yield "</tbody></table></div>"


def _matrix_cell(metric: Metric, value: float, ends: tuple[float, float, bool]) -> str:
    if math.isnan(value):
        return "<td></td>"
    fill = color(COLOR_MAPS[metric.scale], svg_maps.fraction(value, *ends))
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    text = "#000" if 0.3 * red + 0.59 * green + 0.11 * blue > 128 else "#fff"
    return f'<td style="background:{fill};color:{text}">{shown(value, metric.percent)}</td>'


def _maps(comparison: Comparison, chosen: Sequence[Metric]) -> Iterable[str]:
    grid = grid_of(comparison)
    yield "<h2>Heat maps</h2>"
    yield (
        '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><pattern id="none" '
        'width="5" height="5" patternUnits="userSpaceOnUse"><path d="M0 5L5 0"/></pattern></svg>'
    )
    yield '<div class="groups">'
    for name, metrics in groupby(chosen, lambda metric: metric.group):
        panels = svg_maps.group(grid, list(metrics))
        legend = f'<p class="dim">{safe(LEGENDS[name])}</p>'
        yield f'<section><h3>{name}</h3>{legend}<div class="panels">{panels}</div></section>'
    yield '</div><p class="dim">Hatched: missing from this layer. Gray: figure not defined.</p>'


def _tensors(comparison: Comparison, chosen: Sequence[Metric]) -> Iterable[str]:
    count = len(comparison.tensors)
    if count > MOST_TENSORS:
        yield f"<p>{count:,} tensors are too many for a page; --json lists them.</p>"
        return
    yield f"<details><summary><strong>By tensor ({count:,})</strong></summary>"
    yield '<p><label>Only names with <input type="search" data-table="tensors"></label></p>'
    yield _table("tensors", comparison, chosen) + "</details>"


def _table(name: str, comparison: Comparison, chosen: Sequence[Metric]) -> str:
    by_tensor = name == "tensors"
    words = ["tensor", "component"] if by_tensor else ["layer", "component"]
    heads = [f'<th scope="col" class="word"><button>{word}</button></th>' for word in words]
    for title in ("parameters", *(metric.title for metric in chosen)):
        heads.append(f'<th scope="col" data-number="1"><button>{safe(title)}</button></th>')
    rows = comparison.tensors if by_tensor else comparison.cells
    totals = () if by_tensor else (*comparison.components, comparison.total)
    body = "\n".join(_row(row, number, chosen) for number, row in enumerate(rows))
    foot = "\n".join(_row(row, number, chosen) for number, row in enumerate(totals))
    label = "figures by tensor" if by_tensor else "figures by layer and component"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table id="{name}" class="sortable"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _row(row: Row, number: int, chosen: Sequence[Metric]) -> str:
    name = safe(row.name or row.place)
    cells = [
        # Layers sort by their order in the model, not by their names.
        f'<td class="word" data-v="{number:08d}">{name}</td>',
        f'<td class="word" data-v="{row.component}">{row.component}</td>',
        f'<td data-v="{row.facts.elements}">{row.facts.elements:,}</td>',
    ]
    for metric in chosen:
        value = metric.value(row.facts)
        sortable = "" if math.isnan(value) else f"{min(value, 1e308):.6g}"
        cells.append(f'<td data-v="{sortable}">{metric.text(row.facts)}</td>')
    return f"<tr>{''.join(cells)}</tr>"
