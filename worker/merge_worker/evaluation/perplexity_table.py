"""Perplexities as a table for people and as JSON for programs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..messages import counted, printable
from .perplexity import Measured
from .statistics import Estimate, Losses, best, difference

TOLD = 2.0
"""Standard errors above which a difference is marked."""


def table(measured: Measured) -> str:
    """Return what was measured, a line for each model, and what the columns mean."""
    models = measured.models
    lead = best(models, measured.same_tokens)
    unit = "nats" if measured.same_tokens else "bits/byte"
    heads = ["model", "nats/token", "perplexity", "bits/byte"]
    others = list(dict.fromkeys([0, lead])) if len(models) > 1 else []
    heads += [f"{unit} to {_short(models[other].label)}" for other in others]
    gaps = [[difference(m, models[n], measured.same_tokens) for m in models] for n in others]
    nats, bytewise = [m.nats for m in models], [m.bits_per_byte for m in models]
    rows, marked = [heads], False
    for number, model in enumerate(models):
        cells = [
            printable(model.label) + (" (best)" if number == lead and len(models) > 1 else ""),
            _shown(nats[number], _digits(nats)),
            _number(model.perplexity),
            _shown(bytewise[number], _digits(bytewise)),
        ]
        for other, column in zip(others, gaps, strict=True):
            told = other != number and is_told(column[number])
            marked = marked or told
            text = _shown(column[number], _digits(column), signed=True)
            cells.append("-" if other == number else text + (" *" if told else ""))
        rows.append(cells)
    lines = [_heading(measured), "", *_aligned(rows)]
    if marked:
        lines += ["", f"  *  more than {TOLD:g} standard errors (of paired windows) from 0"]
    lines += [f"note: {printable(note)}" for note in measured.notes]
    return "\n".join(lines)


def is_told(gap: Estimate) -> bool:
    """Return whether a difference exceeds TOLD standard errors."""
    return bool(gap.error) and abs(gap.value) > TOLD * (gap.error or 0.0)


def as_json(measured: Measured) -> dict[str, Any]:
    """Return all figures; those of the first model stand at the top too. NaN becomes null."""
    models, settings = measured.models, measured.settings
    lead = best(models, measured.same_tokens)
    return {
        **_figures(models[0]),
        "data": measured.data,
        "samples": measured.samples,
        "windows": len(models[0].windows),
        "length": settings.length,
        "stride": settings.stride or settings.length,
        "same_tokens": measured.same_tokens,
        "best": models[lead].label,
        "models": [_model(measured, number, lead) for number in range(len(models))],
        "notes": list(measured.notes),
    }


def _model(measured: Measured, number: int, lead: int) -> Mapping[str, Any]:
    model = measured.models[number]
    gaps = {}
    for key, other in (("to_first", 0), ("to_best", lead)):
        gap = difference(model, measured.models[other], measured.same_tokens)
        gaps[key] = {
            "unit": "nats" if measured.same_tokens else "bits_per_byte",
            "value": _finite(gap.value),
            "stderr": _finite(gap.error),
        }
    windows = [
        {
            "where": where,
            "nats": _finite(loss.nats / loss.tokens if loss.tokens else math.nan),
            "tokens": loss.tokens,
            "bytes": loss.nbytes,
        }
        for loss, where in zip(model.windows, measured.windows, strict=True)
    ]
    return {
        "model": model.label,
        **_figures(model),
        "dtype": model.dtype,
        "device": model.device,
        "seconds": round(model.seconds, 3),
        "cpu_seconds": round(model.cpu_seconds, 3),
        **gaps,
        "windows": windows,
    }


def _figures(model: Losses) -> dict[str, Any]:
    return {
        "nats": _finite(model.nats.value),
        "nats_stderr": _finite(model.nats.error),
        "perplexity": _finite(model.perplexity),
        "bits_per_byte": _finite(model.bits_per_byte.value),
        "bits_per_byte_stderr": _finite(model.bits_per_byte.error),
        "tokens": model.tokens,
        "bytes": model.nbytes,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _heading(measured: Measured) -> str:
    models, settings = measured.models, measured.settings
    step = f", a new one every {settings.stride}" if settings.stride else ""
    windows = counted(len(models[0].windows), "windows")
    lines = [
        f"data       {printable(measured.data)}, {counted(measured.samples, 'samples')}",
        f"windows    {windows} of at most {settings.length} tokens{step}",
        f"predicted  {models[0].tokens:,} tokens, {models[0].nbytes:,} bytes",
    ]
    return "\n".join(lines)


def _short(label: str) -> str:
    text = printable(label).rstrip("/").rpartition("/")[2] or printable(label)
    return text if len(text) <= 24 else f"…{text[-23:]}"


def _digits(estimates: Sequence[Estimate]) -> int:
    """Return the decimals of a column: two digits of its least standard error, 4 to 6."""
    errors = [estimate.error for estimate in estimates if estimate.error]
    least = min(errors, default=1.0)
    return min(6, max(4, 1 - math.floor(math.log10(least))))


def _shown(estimate: Estimate, digits: int, signed: bool = False) -> str:
    """Return a value with its standard error."""
    value, error = estimate
    if not math.isfinite(value):
        return "-"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text + (f" ± {error:.{digits}f}" if error is not None else "")


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "inf"
    return f"{value:.4g}" if value >= 1e5 else f"{value:.{2 if value >= 100 else 3}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
