"""A comparison as text for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..messages import counted, printable
from .figures import Comparison, Facts, Row
from .grid import elided
from .metrics import LEGENDS, Metric

LONGEST_LINE = 100


def table(comparison: Comparison, chosen: Sequence[Metric], by_tensor: bool) -> str:
    """Return figures by layer and component (or by tensor), then by component, then in total.

    Where a line would be longer than LONGEST_LINE, each model and pair has a line of its own.
    """
    rows = comparison.tensors if by_tensor else comparison.cells
    totals = (*comparison.components, comparison.total)
    first = ("tensor",) if by_tensor else ("layer", "component")
    head = [*first, "parameters", *(metric.title for metric in chosen)]
    cells = [_cells(row, chosen, by_tensor) for row in (*rows, *totals)]
    lines = _aligned([head, *cells], len(first))
    above = len(rows)
    if max(map(len, lines)) > LONGEST_LINE:
        lines = _by_subject((*rows, *totals), chosen, by_tensor)
        above *= (len(lines) - 1) // len(cells)
    rule = "-" * max(map(len, lines))
    text = [lines[0], rule, *lines[1 : above + 1], rule, *lines[above + 1 :]]
    legend = [f"  {group:<10} {LEGENDS[group]}" for group in dict.fromkeys(m.group for m in chosen)]
    return "\n".join([*text, "", *legend])


def _by_subject(rows: Sequence[Row], chosen: Sequence[Metric], by_tensor: bool) -> list[str]:
    """Return the head, and of every row its place and a line for each model, pair or summary."""
    groups = list(dict.fromkeys(metric.group for metric in chosen))
    subjects = list(dict.fromkeys(metric.subject for metric in chosen))
    names = [elided(printable(subject or "both models"), 36) for subject in subjects]
    body = []
    for row in rows:
        for subject, name in zip(subjects, names, strict=True):
            texts = {m.group: m.text(row.facts) for m in chosen if m.subject == subject}
            body.append([f"  {name}", *(texts.get(group, "") for group in groups)])
    head, *lines = _aligned([["", *groups], *body], 1)
    for number, row in reversed(list(enumerate(rows))):
        place = " ".join(filter(None, _cells(row, (), by_tensor)[:-1]))
        place = elided(place, LONGEST_LINE - 40)
        of = f"{place}: {row.facts.elements:,} parameters"
        lines.insert(number * len(subjects), of)
    return [head, *lines]


def _cells(row: Row, chosen: Sequence[Metric], by_tensor: bool) -> list[str]:
    if row.stack == "all":
        name = ["all" if row.component == "all" else f"all {row.component}"]
        name = name if by_tensor else ["all", row.component if row.component != "all" else ""]
    else:
        name = [printable(row.name)] if by_tensor else [printable(row.place), row.component]
    return [*name, f"{row.facts.elements:,}", *(metric.text(row.facts) for metric in chosen)]


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def heading(comparison: Comparison) -> str:
    """Return the names of the models, the number of tensors, and the tensors left out."""
    models = comparison.models
    lines = [f"base       {models.labels[0]}"] if models.has_base else []
    lines += [f"model      {models.labels[i]}" for i in models.own]
    facts = comparison.total.facts
    lines.append(
        f"compared   {counted(comparison.total.tensors, 'tensors')}, {facts.elements:,} parameters"
    )
    lines += [f"left out   {line}" for line in models.left_out]
    for label, count in zip(models.labels, facts.nonfinite, strict=True):
        if count:
            first = next(row.name for row in comparison.tensors if any(row.facts.nonfinite))
            lines.append(
                f"NaN or Inf {count} in {label}, first in {printable(first)}; left out everywhere"
            )
    return "\n".join(lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return all measurements; NaN and infinity become null."""
    models = comparison.models
    return {
        "models": [models.labels[i] for i in models.own],
        "base": models.labels[0] if models.has_base else None,
        "left_out": list(models.left_out),
        "mergeable": models.mergeable,
        "total": _row(comparison.total, comparison),
        "components": [_row(row, comparison) for row in comparison.components],
        "layers": [_row(row, comparison) for row in comparison.cells],
        "tensors": [_row(row, comparison) for row in comparison.tensors],
    }


def _row(row: Row, comparison: Comparison) -> dict[str, Any]:
    models, facts = comparison.models, row.facts
    entry: dict[str, Any] = {"component": row.component, "stack": row.stack, "layer": row.layer}
    if row.name:
        entry = {"name": row.name, "shape": list(row.shape), **entry}
    else:
        entry["tensors"] = row.tensors
    entry["parameters"] = facts.elements
    if models.has_base:
        entry["base_norm"] = _number(facts.norm[0])
    entry["models"] = [_model(facts, i, models.has_base) for i in models.own]
    entry["pairs"] = [
        {
            "models": [models.labels[i], models.labels[j]],
            "distance": _number(facts.distance[i][j]),
            "relative_distance": _number(facts.relative[i][j]),
            "cosine": _number(facts.cosine[i][j]),
            "sign_conflicts": _number(facts.conflict[i][j]),
            "equal": _number(facts.equal[i][j]),
            **({} if models.has_base else _rank(facts, i, j)),
        }
        for i, j in models.pairs
    ]
    entry["sign_conflicts_any"] = _number(facts.opposed)
    return entry


def _model(facts: Facts, number: int, has_base: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"norm": _number(facts.norm[number])}
    if has_base:
        entry |= {
            "task_vector_norm": _number(facts.distance[0][number]),
            "relative_distance": _number(facts.relative[0][number]),
            "unchanged": _number(facts.equal[0][number]),
            **_rank(facts, 0, number),
        }
    return {**entry, "nonfinite": facts.nonfinite[number]}


def _rank(facts: Facts, i: int, j: int) -> dict[str, Any]:
    """Return the effective rank, its tensor, and its upper bound."""
    value = facts.ranks[i][j]
    if math.isnan(value):
        return {}
    return {"effective_rank": _number(value), "of": facts.rank_of, "full_rank": facts.full_rank}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
