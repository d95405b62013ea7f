"""A comparison as one self-contained HTML file, without network, fonts or libraries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

from ..drawing.html_page import html_page, safe
from . import svg_maps
from .advice import Advice
from .figures import Comparison, Row
from .grid import grid_of
from .metrics import LEGENDS, Metric
from .table import heading

MOST_TENSORS = 5000
"""Rows above which browsers become slow; `--json` lists all of them."""


def page(comparison: Comparison, chosen: Sequence[Metric], advice: Advice) -> str:
    """Return the content of the file."""
    models = comparison.models
    names = " · ".join(models.labels[i] for i in models.own)
    title = f"{names}, from {models.labels[0]}" if models.has_base else names
    body = [_facts(comparison), _advice(advice), *_maps(comparison, chosen)]
    body += ["<h2>By layer and component</h2>", _table("cells", comparison, chosen)]
    body += _tensors(comparison, chosen)
    return html_page(title, "\n".join(body))


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
