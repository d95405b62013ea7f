"""`merge-worker average`: a merge of models by their names, with no recipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.hub import is_hub_name, upload
from ..engine.options import Clock
from ..engine.run import run_merges
from ..errors import InputError, UsageError, WorkerError
from ..messages import print_line
from ..output.files import MANIFEST
from ..output.manifest import files_to_upload
from ..planning.plan import Plan, make_plan
from ..recipe import parse
from ..recipe.shorthand import recipe_from_values
from ..system.ranks import from_environment
from ..system.torch_startup import require_torch
from . import load
from .options import add_options, plan_options, run_options
from .reproduce import plan_from_manifest, read_as_manifest


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("model", metavar="MODEL", nargs="+")
    add_options(parser, "average")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """WorkerError of any kind."""
    text = recipe_from_values(arguments.model, vars(arguments))
    return make_plan(parse(text, "average"), plan_options(arguments, arguments.out))


def run_merge(arguments: argparse.Namespace, clock: Clock) -> int:
    pairs = list(arguments.also)
    if arguments.recipe is not None:
        pairs.insert(0, (arguments.recipe, arguments.out))
    if not pairs or (arguments.recipe and not arguments.out):
        raise UsageError("merge: give RECIPE.yml and OUT, or several pairs, each behind -a")
    outs = [Path(out).resolve() for _, out in pairs]
    twice = next((out for out in outs if outs.count(out) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice}: two recipes write here; give each an OUT of its own")
    plans, faults = [], []
    for recipe, out in pairs:
        try:
            plans.append((recipe_plan(recipe, arguments, out), Path(out)))
        except WorkerError as error:
            faults.append(error)
    if faults:
        raise type(faults[0])("\n".join(map(str, faults)))
    return _run(plans, arguments, clock)


def recipe_plan(recipe: str, arguments: argparse.Namespace, out: str | None = None) -> Plan:
    """The plan of a recipe, or of the manifest of a merge that is to be done again."""
    path, options = Path(recipe), plan_options(arguments, out)
    text = read_recipe(path)
    if path.suffix == ".json" and (manifest := read_as_manifest(path, text)):
        return plan_from_manifest(path, manifest, options)
    return make_plan(parse(text, str(path)), options)


def run_average(arguments: argparse.Namespace, clock: Clock) -> int:
    plan = load("average").plan_of(arguments)
    return _run([(plan, Path(arguments.out))], arguments, clock)


def _run(plans: Sequence[tuple[Plan, Path]], arguments: argparse.Namespace, clock: Clock) -> int:
    require_torch()
    for warning in dict.fromkeys(line for plan, _ in plans for line in plan.warnings):
        print_line(f"warning: {warning}", sys.stderr)
    if arguments.push and (len(plans) > 1 or not is_hub_name(arguments.push)):
        raise UsageError(f"--push {arguments.push}: give ORG/NAME, and one recipe")
    for line in run_merges(plans, run_options(arguments), from_environment(), clock):
        print_line(line, sys.stdout)
    if arguments.push and (plans[0][1] / MANIFEST).is_file():  # else other ranks still work
        print_line(upload(files_to_upload(plans[0][1]), arguments.push), sys.stdout)
    return 0


def read_recipe(path: Path) -> str:
    """The text of a recipe file. InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not text; a recipe is a YAML file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a recipe") from None
