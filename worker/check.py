"""`merge-worker check`: what a recipe would do, from headers; nothing is written."""

from __future__ import annotations

import argparse
import json

from .cli import recipe_plan
from .options import add_plan_options
from .probe import probe
from .report import as_json, describe


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml")
    parser.add_argument("--json", action="store_true")
    add_plan_options(parser)


def command(arguments: argparse.Namespace) -> str:
    """The plan in words or as JSON. WorkerError with every fault that headers show."""
    plan = recipe_plan(arguments.recipe, arguments)
    speed = probe(plan)
    return json.dumps(as_json(plan, speed), indent=1) if arguments.json else describe(plan, speed)
