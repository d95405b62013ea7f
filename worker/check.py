"""`merge-worker check`: what a recipe would do, from headers; nothing is written."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cli import read_recipe, recipe_plan
from .errors import UsageError
from .named import with_absent_models
from .options import add_options, plan_options
from .report import checked


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml")
    parser.add_argument("out", metavar="OUT", nargs="?", help="whether it fits on that disk, too")
    add_options(parser, "check")


def command(arguments: argparse.Namespace) -> str:
    """The plan in words or as JSON. WorkerError with every fault that headers and the disk show."""
    try:
        plan = recipe_plan(arguments.recipe, arguments, arguments.out)
    except UsageError as error:
        text = read_recipe(Path(arguments.recipe))
        raise with_absent_models(error, text, plan_options(arguments, None).relative_to) from None
    found = checked(plan, arguments.out and Path(arguments.out), arguments.json)
    if found.fault is not None:
        print(found.text)
        raise found.fault
    return found.text
