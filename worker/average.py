"""`merge-worker average`: a merge of models by their names, with no recipe."""

from __future__ import annotations

import argparse

from .direct import direct_recipe, parse_number, weighted
from .errors import UsageError
from .options import add_plan_options, add_run_options, plan_options
from .plan import Plan, make_plan
from .recipe import parse
from .schedules import FORMS


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", metavar="OUT")
    add("model", metavar="MODEL", nargs="+")
    add("--weights", metavar="2,1,1", help="one per model; default: equal")
    schedules = f"weights of checkpoints, given from old to new: {FORMS}"
    add("--schedule", metavar="NAME", help=schedules)
    add("--method", default="linear")
    add("--base-model", metavar="MODEL")
    add("--no-normalize", dest="normalize", action="store_false")
    add_plan_options(parser)
    add_run_options(parser)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """WorkerError of any kind."""
    weights = arguments.weights and [parse_number(word) for word in arguments.weights.split(",")]
    models = arguments.model
    if arguments.schedule:
        if weights:
            raise UsageError("--schedule and --weights exclude each other; keep one")
        models, weights = weighted(arguments.schedule, models, arguments.base_model)
    text = direct_recipe(
        models,
        method=arguments.method,
        weights=weights,
        base_model=arguments.base_model,
        dtype=arguments.dtype,
        parameters={} if arguments.normalize else {"normalize": False},
    )
    return make_plan(parse(text, "average"), plan_options(arguments, arguments.out))
