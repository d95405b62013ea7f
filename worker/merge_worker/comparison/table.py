"""A comparison as text for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..messages import counted, printable
from .figures import Comparison, Facts, Row
from .metrics import GROUPS, Metric


def table(comparison: Comparison, chosen: Sequence[Metric], by_tensor: bool) -> str:
    """The figures by layer and component (or tensor), then by component, then of everything."""
    rows = comparison.tensors if by_tensor else comparison.cells
    first = ("tensor",) if by_tensor else ("layer", "component")
    head = [*first, "parameters", *(metric.title for metric in chosen)]
    body = [_cells(row, chosen, by_tensor) for row in rows]
    ends = [_cells(row, chosen, by_tensor) for row in (*comparison.components, comparison.total)]
    # The last rows have no rank; a tensor's name is wider than a component's.
    lines = _aligned([head, *body, *ends], len(first))
    rule = "-" * max(len(line) for line in lines)
    count = len(body) + 1
    text = [lines[0], rule, *lines[1:count], rule, *lines[count:]]
    legend = [f"  {group:<10} {GROUPS[group]}" for group in dict.fromkeys(m.group for m in chosen)]
    return "\n".join([*text, "", *legend])


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
    """What is compared with what, and what is not."""
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
            worst = [row.name for row in comparison.tensors if any(row.facts.nonfinite)]
            named = printable(worst[0])
            lines.append(f"NaN or Inf {count} in {label}, first in {named}; left out everywhere")
    return "\n".join(lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything that was measured; what is not a number is null."""
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
    what: dict[str, Any] = {"component": row.component, "stack": row.stack, "layer": row.layer}
    if row.name:
        what = {"name": row.name, "shape": list(row.shape), **what}
    else:
        what["tensors"] = row.tensors
    found: dict[str, Any] = {**what, "parameters": facts.elements}
    if models.has_base:
        found["base_norm"] = _number(facts.norm[0])
    found["models"] = [_model(facts, i, models.has_base) for i in models.own]
    found["pairs"] = [
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
    found["sign_conflicts_any"] = _number(facts.opposed)
    return found


def _model(facts: Facts, number: int, has_base: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"norm": _number(facts.norm[number])}
    if has_base:
        found |= {
            "task_vector_norm": _number(facts.distance[0][number]),
            "relative_distance": _number(facts.relative[0][number]),
            "unchanged": _number(facts.equal[0][number]),
            **_rank(facts, 0, number),
        }
    return {**found, "nonfinite": facts.nonfinite[number]}


def _rank(facts: Facts, i: int, j: int) -> dict[str, Any]:
    """The effective rank, of which tensor, and the rank that it cannot exceed."""
    value = facts.ranks.get((i, j))
    if value is None:
        return {}
    shown_value = _number(value)
    return {
        "effective_rank": shown_value, "of": facts.rank_of, "full_rank": facts.most_rank,
    }  # fmt: skip


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
