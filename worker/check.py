"""`merge-worker check`: what a recipe would do, from headers; nothing is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli import recipe_plan
from .options import add_plan_options
from .report import checked


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml")
    parser.add_argument("out", metavar="OUT", nargs="?", help="whether it fits on that disk, too")
    parser.add_argument("--json", action="store_true")
    add_plan_options(parser)


def command(arguments: argparse.Namespace) -> str:
    """The plan in words or as JSON. WorkerError with every fault that headers and the disk show."""
    plan = recipe_plan(arguments.recipe, arguments, arguments.out)
    found = checked(plan, arguments.out and Path(arguments.out), arguments.json)
    if found.fault is not None:
        print(found.text)
        raise found.fault
    return found.text
