"""`merge-worker compare`: how models differ, layer by layer, and how to merge them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line.parser import Parser
from ..errors import InputError, OutputError, UsageError, input_errors
from ..messages import printable
from .options import add_options

if TYPE_CHECKING:
    from ..comparison.advice import Advice
    from ..comparison.figures import Comparison
    from ..comparison.metrics import Metric
    from ..comparison.models import Models

MOST_COLUMNS = 2
"""Models, and pairs of them, with a column each in the table."""


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="+", help="folders, files, or models of the Hub")
    add("--base-model", metavar="MODEL", dest="base", help="the model they were trained from")
    parser.add_alias("--base", "base")
    output_options(parser)


def output_options(parser: Parser) -> None:
    """Add the options that `compare` and `report` have in common."""
    add = parser.add_argument
    add("--tensors", action="store_true", help="a line for each tensor, not each component")
    add("--plot", metavar="FILE.png|.html", help="heat maps by layer and component")
    add("--search", metavar="FILE.yml", help="write the suggested search into this file")
    add_options(parser, "compare")


@input_errors("compare")
def command(arguments: argparse.Namespace) -> str:
    """Return the table or JSON, and write the plot to its file."""
    from ..comparison.advice import advise
    from ..comparison.metrics import metrics
    from ..comparison.models import open_models
    from ..comparison.plot import check_plot

    if len(arguments.model) < 2 and not arguments.base:
        raise UsageError("compare: only one model given; add another, or its --base-model")
    check_plot(arguments.plot)
    check_search(arguments.search)
    models = open_models(arguments.model, arguments.base)
    comparison = measure(models, arguments)
    paths = [*([arguments.base] if arguments.base else []), *arguments.model]
    return render(comparison, advise(comparison, paths), metrics, arguments)


def measure(models: Models, arguments: argparse.Namespace) -> Comparison:
    """Read all models once. UsageError without torch."""
    from ..system.machine import usable_cpus
    from ..system.torch_startup import require_torch

    require_torch(arguments.command)
    from ..comparison.figures import compare
    from ..comparison.stream import stream

    threads = arguments.threads or usable_cpus()
    return compare(models, stream(models, threads, arguments.progress))


def render(
    comparison: Comparison,
    advice: Advice,
    columns: Callable[..., list[Metric]],
    arguments: argparse.Namespace,
) -> str:
    """Return the text or JSON to print, and draw the plot. `columns`: metrics of some models."""
    from ..comparison.plot import draw
    from ..comparison.table import as_json, heading, table

    if arguments.plot:
        draw(comparison, columns(comparison.models), advice, arguments.plot)
    if arguments.search:
        _write_search(advice, arguments.search)
    if arguments.json:
        facts = {
            "warnings": advice.warnings,
            "findings": advice.findings,
            "recipe": advice.recipe,
            "search": advice.search,
        }
        return json.dumps({**as_json(comparison), "advice": facts}, indent=1)
    chosen = columns(comparison.models, MOST_COLUMNS)
    parts = [heading(comparison), table(comparison, chosen, arguments.tensors), _advice(advice)]
    if arguments.plot:
        parts.append(f"picture    {arguments.plot}")
    if arguments.search:
        file = printable(arguments.search)
        parts.append(f"search     {file}; start it: merge-launch search {file} local")
    return "\n\n".join(parts)


def check_search(file: str | None) -> None:
    """Raise OutputError before anything is read if the file of the search is there already."""
    if file is not None and os.path.lexists(file):
        raise OutputError(f"--search {printable(file)}: already exists; give another name")


def _write_search(advice: Advice, file: str) -> None:
    if advice.search is None:
        raise InputError(
            f"--search {printable(file)}: not written, since no search is suggested\n"
            f"  the advice without --search says why"
        )
    try:
        # Exclusively: a file that came into being meanwhile is somebody's.
        with Path(file).open("x", encoding="utf-8") as stream:
            stream.write(advice.search)
    except OSError as error:
        raise OutputError(f"--search {printable(file)}: {error.strerror}") from None


def _advice(advice: Advice) -> str:
    lines = [f"WARNING: {line}" for line in advice.warnings]
    lines += [f"- {line}" for line in advice.findings]
    texts = [text.rstrip() for text in (advice.recipe, advice.search) if text]
    return "\n\n".join(["\n".join(lines), *texts])
