"""The options of merge-worker, made from their table; parsed values as options of plan and run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from typing import Any

from ..command_line.parser import Parser
from ..engine.options import RunOptions
from ..options import GROUP_OF, SharedOption, options_of, with_defaults
from ..planning.options import PlanOptions
from ..planning.plan import Plan
from ..registry import OWN, Registry, read_registry, split_words
from ..system.ranks import patience_s
from ..units import parse_duration

METHODS_VARIABLE = "MERGE_WORKER_METHODS"


def add_options(parser: Parser, command: str, hidden: Collection[str] = ()) -> None:
    """Add the shared options of a command to its parser; the help does not show those `hidden`."""
    for option in options_of(command):
        text = argparse.SUPPRESS if option.name in hidden else option.help
        group = parser.groups[GROUP_OF[option.name]]
        group.add_argument(option.flag, dest=option.name, help=text, **_settings(option))


def _settings(option: SharedOption) -> dict[str, Any]:
    if option.type is bool:
        return {"action": "store_true"}
    if option.repeatable:
        return {"action": "append", "default": [], "metavar": option.metavar}
    return {
        "type": option.type,
        "default": option.default,
        "choices": option.choices or None,
        "metavar": option.metavar,
    }


def plan_options(arguments: argparse.Namespace, out: str | None = None) -> PlanOptions:
    """Return the options of the plan of a merge into `out`."""
    return PlanOptions.from_values(vars(arguments), out)


def known_methods(arguments: argparse.Namespace) -> Registry:
    """Return all methods: those of --methods too, or else of the environment. UsageError."""
    words = split_words(arguments.methods) or split_words(os.environ.get(METHODS_VARIABLE))
    return read_registry(words) if words else OWN


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """Return the options of the run, which do not change the result."""
    given = with_defaults(vars(arguments))
    return RunOptions(
        device=given["device"],
        expect_gpus=given["expect_gpus"] or 0,
        overwrite=given["overwrite"],
        resume=not given["no_resume"],
        sha256=given["sha256"],
        progress=given["progress"],
        allow_nonfinite=given["allow_nonfinite"],
        prune=given["prune_downloads"],
        patience_s=patience_s(given["ranks"]),
        deadline_s=parse_duration(given["deadline"]) if given["deadline"] else None,
        gates=write_gates,
    )


def write_gates(plan: Plan, options: RunOptions) -> None:
    """Compute the gates of a mixture, unless they are there; see `experts.gates`."""
    from ..experts.gates import prepare_gates  # with torch

    prepare_gates(plan, options)
