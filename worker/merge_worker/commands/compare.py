"""`merge-worker compare`: how models differ, layer by layer, and what to merge them with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UsageError, input_errors
from .options import add_options

if TYPE_CHECKING:
    from ..comparison.advice import Advice
    from ..comparison.figures import Comparison
    from ..comparison.metrics import Metric
    from ..comparison.models import Models


class Columns(Protocol):
    """What makes the columns for some models: one for each of at most `few` of them."""

    def __call__(self, models: Models, few: int = ...) -> list[Metric]: ...


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="+", help="folders or .safetensors files")
    add("--base", metavar="MODEL", help="what the models were trained from")
    output_options(parser)


def output_options(parser: argparse.ArgumentParser) -> None:
    """Of `compare` and `report` alike."""
    add = parser.add_argument
    add("--tensors", action="store_true", help="a line for each tensor, not each component")
    add("--json", action="store_true", help="everything, for programs")
    add("--plot", metavar="FILE.png|.html", help="heat maps by layer and component")
    add_options(parser, "compare")


@input_errors("compare")
def command(arguments: argparse.Namespace) -> str:
    """The table, or JSON; the picture is written beside. WorkerError of any kind."""
    from ..comparison.advice import advise
    from ..comparison.metrics import metrics
    from ..comparison.models import open_models

    if len(arguments.model) < 2 and not arguments.base:
        raise UsageError("compare: one model alone; name another, or its --base")
    check_plot(arguments.plot)
    models = open_models(arguments.model, arguments.base)
    comparison = measure(models, arguments)
    words = [*([arguments.base] if arguments.base else []), *arguments.model]
    return answer(comparison, advise(comparison, words), metrics, arguments)


def check_plot(plot: str | None) -> None:
    """UsageError before anything is read if the picture could not be drawn."""
    from ..comparison.plot import drawer

    if plot is not None:
        drawer(plot)


def measure(models: Models, arguments: argparse.Namespace) -> Comparison:
    """Read all of the models once. UsageError without torch."""
    from ..system.cpus import usable_cpus
    from ..system.torch_startup import require_torch

    require_torch()
    from ..comparison.figures import compare
    from ..comparison.stream import stream

    threads = arguments.threads or usable_cpus()
    return compare(models, stream(models, threads, arguments.progress))


def answer(
    comparison: Comparison, advice: Advice, columns: Columns, arguments: argparse.Namespace
) -> str:
    """What to print; the picture is written to its file."""
    from ..comparison.table import as_json, heading, table

    if arguments.plot:
        from ..comparison.plot import drawer

        drawer(arguments.plot)(comparison, columns(comparison.models), advice, arguments.plot)
    if arguments.json:
        return json.dumps({**as_json(comparison), "advice": _advice_json(advice)}, indent=1)
    chosen = columns(comparison.models, 2)
    parts = [heading(comparison), table(comparison, chosen, arguments.tensors)]
    parts += [_told(advice)]
    if arguments.plot:
        parts.append(f"picture    {arguments.plot}")
    return "\n\n".join(parts)


def _advice_json(advice: Advice) -> dict[str, Any]:
    warnings, findings = list(advice.warnings), list(advice.findings)
    return {"warnings": warnings, "findings": findings, "recipe": advice.recipe}


def _told(advice: Advice) -> str:
    lines: Sequence[str] = [f"WARNING: {line}" for line in advice.warnings]
    lines = [*lines, *(f"- {line}" for line in advice.findings)]
    return "\n".join(lines) + (f"\n\n{advice.recipe}".rstrip() if advice.recipe else "")
