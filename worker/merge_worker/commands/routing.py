"""`merge-worker routing`: which experts of a mixture the tokens of some texts reach."""

from __future__ import annotations

import argparse
import json

from ..command_line.parser import Parser
from ..errors import input_errors
from .options import add_options


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MOE", help="folder of the mixture of experts, or a model of the Hub")
    add(
        "--texts",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="texts under a name, such as that of their expert (repeatable); default: the prompts "
        "in the recipe of the merge, whose routing is recorded in its manifest and card",
    )
    add("--plot", metavar="FILE.png|.html", help="maps of layers and experts")
    add_options(parser, "routing")


@input_errors("routing")
def command(arguments: argparse.Namespace) -> str:
    """Return the table or JSON, and draw the picture."""
    from ..drawing.files import check_plot
    from ..system.torch_startup import complete, require_torch

    check_plot(arguments.plot)
    require_torch("routing")
    complete()
    from ..routers.loading import require_transformers
    from ..routers.picture import draw
    from ..routers.routing_run import route_again
    from ..routers.routing_table import as_json, lines

    require_transformers("routing")
    routing, recorded = route_again(arguments.model, arguments.texts, arguments.device)
    if arguments.plot:
        draw(routing, f"routing of {arguments.model}", arguments.plot)
    if arguments.json:
        return json.dumps(as_json(routing), indent=1)
    text = lines(routing)
    text += [f"recorded in {arguments.model}"] if recorded else []
    return "\n".join([*text, *([f"picture    {arguments.plot}"] if arguments.plot else [])])
