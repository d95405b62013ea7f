"""`merge-worker average`: a merge of models by their names, with no recipe."""

from __future__ import annotations

import argparse

from .direct import recipe_from_values
from .options import add_options, plan_options
from .plan import Plan, make_plan
from .recipe import parse


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("model", metavar="MODEL", nargs="+")
    add_options(parser, "average")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """WorkerError of any kind."""
    text = recipe_from_values(arguments.model, vars(arguments))
    return make_plan(parse(text, "average"), plan_options(arguments, arguments.out))
