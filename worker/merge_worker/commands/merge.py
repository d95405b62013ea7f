"""`merge-worker merge` and `average`: one or several merges, planned and run in one pass."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.hub import is_hub_name, prepare_upload, upload
from ..command_line.parser import Parser
from ..engine.run import run_merges
from ..errors import InputError, UsageError, WorkerError
from ..messages import print_line
from ..output.files import MANIFEST
from ..output.manifest import files_to_upload, read_manifest
from ..output.target import refuse_model_as_out
from ..planning.options import PlanOptions
from ..planning.plan import Plan, make_plan
from ..recipe import RecipeText, parse, recipe_in
from ..recipe.experts import GATE_MODES
from ..recipe.shorthand import direct_recipe, recipes_from_values
from ..recipe.yaml_document import COMMAND
from ..registry import Registry
from ..system.progress import print_event
from ..system.ranks import rank_of
from ..system.torch_startup import require_torch
from .after_merge import asks_for_steps, prepare_steps, run_steps
from .options import add_options, known_methods, plan_options, run_options
from .reproduce import plan_from_manifest, read_as_manifest

COPY = "passthrough"


def options(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml", nargs="?", help="the recipe")
    parser.add_out("the folder of the merged model", needed=False)
    parser.add_argument(
        "-a",
        "--also",
        nargs=2,
        action="append",
        default=[],
        metavar=("RECIPE.yml", "OUT"),
        help="another recipe and its OUT: one pass over the inputs of all (repeatable)",
    )
    add_options(parser, "merge")


def command(arguments: argparse.Namespace) -> str:
    """Merge each RECIPE into its OUT. Every recipe is planned before any merge starts."""
    pairs = list(arguments.also)
    if arguments.recipe is not None:
        pairs.insert(0, (arguments.recipe, arguments.out))
    if not pairs or (arguments.recipe and not arguments.out):
        raise UsageError("merge: give RECIPE.yml and OUT, or several pairs, each behind -a")
    outs = [Path(out).resolve() for _, out in pairs]
    if len(arguments.recipe_name) > len(pairs):
        raise UsageError(f"--recipe-name: more names than recipes, {len(pairs)}")
    for _, out in pairs:
        if outs.count(Path(out).resolve()) > 1:
            raise UsageError(f"{out}: two recipes write here; give each its own OUT")
    plans, faults = [], []
    names = [*arguments.recipe_name, *(recipe for recipe, _ in pairs[len(arguments.recipe_name) :])]
    for (recipe, folder), name in zip(pairs, names, strict=True):
        try:
            plans.append((recipe_plan(recipe, arguments, folder, name), Path(folder)))
        except WorkerError as error:
            faults.append(error)
    if faults:
        raise type(faults[0])("\n".join(map(str, faults)))
    return _run(plans, arguments)


def average_options(parser: Parser) -> None:
    parser.add_out("the folder of the merged model", before="model")
    parser.add_argument(
        "model", metavar="MODEL", nargs="*", help="folders, files, or models of the Hub"
    )
    parser.required.append("model")
    add_options(parser, "average")


def average_command(arguments: argparse.Namespace) -> str:
    """Merge models named on the command line, without a recipe."""
    refuse_model_as_out(arguments.out, arguments.model)
    methods = known_methods(arguments)
    plans = []
    for name, text in recipes_from_values(arguments.model, vars(arguments), methods).items():
        out = str(Path(arguments.out, name))
        options = plan_options(arguments, out)
        plan = make_plan(parse(text, COMMAND, options.relative_to, methods), options)
        plans.append((plan, Path(out)))
    return _run(plans, arguments)


def convert_options(parser: Parser) -> None:
    parser.description = (
        "Writes one checkpoint in another form: a trainer's under the names of transformers "
        "(--config), or with another dtype or size of files. It resumes, and is verified, like a "
        "merge."
    )
    parser.add_argument("model", metavar="CHECKPOINT", help="a folder, file or model of the Hub")
    parser.add_out("the folder of the result")
    add_options(parser, "convert")


def convert_command(arguments: argparse.Namespace) -> str:
    """Write one checkpoint in another form: the merge of one model, all of it copied."""
    text = direct_recipe([arguments.model], method=COPY, dtype=arguments.dtype)
    options = plan_options(arguments, arguments.out)
    plan = make_plan(parse(text, COMMAND, options.relative_to), options)
    return _run([(plan, Path(arguments.out))], arguments)


def _run(plans: Sequence[tuple[Plan, Path]], arguments: argparse.Namespace) -> str:
    require_torch()
    for warning in dict.fromkeys(line for plan, _ in plans for line in plan.warnings):
        print_event(arguments.progress, "warning", warning)
    if arguments.push and (len(plans) > 1 or not is_hub_name(arguments.push)):
        raise UsageError(f"--push {arguments.push}: give ORG/NAME, and one recipe")
    if arguments.private and not arguments.push:
        raise UsageError("--private requires --push ORG/NAME")
    prepare_steps(arguments)
    rank = rank_of(arguments.ranks)
    if arguments.push:
        print_line(prepare_upload(arguments.push, arguments.private), sys.stderr)
    lines = run_merges(plans, run_options(arguments), rank, arguments.clock)
    lines += [line for plan, out in plans for line in _routing(plan, out, arguments)]
    out = plans[0][1]
    if asks_for_steps(arguments):
        print_line("\n".join(lines), sys.stdout)  # the merge is done, whatever a step finds
        lines = run_steps([folder for _, folder in plans], arguments)
    if arguments.push and (out / MANIFEST).is_file():  # else other ranks are still writing
        print_line("\n".join(lines), sys.stdout)  # the merge is done, even if the upload fails
        return upload(files_to_upload(out, arguments.push), arguments.push)
    return "\n".join(lines)


def _routing(plan: Plan, out: Path, arguments: argparse.Namespace) -> list[str]:
    """Return where the prompts of a mixture's experts go, measured once it is finished.

    Only where the gates have needed model code anyway; `routing` does it for any mixture.
    """
    mixture = plan.recipe.mixture
    if mixture is None or not GATE_MODES[mixture.gate_mode].reads_layers:
        return []
    if (manifest := read_manifest(out)) is None or "routing" in manifest:
        return []  # other ranks are still writing, or it was there
    from ..routers.routing_run import route_prompts
    from ..routers.routing_table import lines

    try:
        routing = route_prompts(out, plan.recipe, plan.options.relative_to, arguments.device)
    except WorkerError as error:  # the merge is finished all the same
        print_event(arguments.progress, "warning", f"routing of the prompts: {error}")
        return []
    return lines(routing) if routing else []


def recipe_plan(
    recipe: str, arguments: argparse.Namespace, out: str | None = None, name: str | None = None
) -> Plan:
    """Plan the RECIPE of a command line, which messages call `name`."""
    options = plan_options(arguments, out)
    return plan_file(Path(recipe), options, known_methods(arguments), name)


def plan_file(path: Path, options: PlanOptions, methods: Registry, name: str | None = None) -> Plan:
    """Plan a recipe, or the manifest of an earlier merge that is to be repeated.

    `name` is what messages call the file; its path if missing.
    """
    text = read_recipe(path)
    if path.suffix == ".json" and (manifest := read_as_manifest(text.text)):
        return plan_from_manifest(path, manifest, options, methods)
    return make_plan(parse(text, name or str(path), options.relative_to, methods), options)


def read_recipe(path: Path) -> RecipeText:
    """Return the recipe in a file, or in a model card. InputError if it cannot be read."""
    try:
        return recipe_in(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not text; a recipe is a YAML file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a recipe") from None
