"""Steps after a merge: the finished OUT is tried and measured in the same run.

A step is a row of STEPS. An option of `merge` and `average` asks for it, and its module has three
functions, whose names begin with its prefix:

    PREFIX_prepare(arguments)    checks before the merge what can be checked then; UsageError or
                                 InputError
    PREFIX_settings(arguments)   what makes two runs the same measurement: `Evaluation.settings`
    PREFIX_run(out, arguments)   returns an `Outcome`; raises any WorkerError

A step that OUT has a record of, of the same kind and settings, is not run again: the same command
continues where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ResultError
from ..messages import print_line
from ..output.evaluation import evaluating, read_runs, record
from ..output.lock import Busy
from ..output.manifest import read_manifest
from ..output.scores import Outcome, same_measurement


class Step(NamedTuple):
    """A step: its option, the kind of its evaluation, its module here, and its prefix there."""

    option: str
    kind: str
    module: str
    prefix: str

    def is_asked_for(self, arguments: argparse.Namespace) -> bool:
        return bool(getattr(arguments, self.option, None))

    def function(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(
            import_module(f"{__package__}.{self.module}"), f"{self.prefix}_{name}"
        )
        return found


STEPS = (
    Step("try_", "try", "try_models", "trial"),
    Step("perplexity", "perplexity", "perplexity_after_merge", "after"),
)


def asks_for_steps(arguments: argparse.Namespace) -> bool:
    """Return whether any step follows the merge."""
    return any(step.is_asked_for(arguments) for step in STEPS)


def prepare_steps(arguments: argparse.Namespace) -> None:
    """Check the steps that are asked for before the merge begins. UsageError or InputError."""
    for step in _asked(arguments):
        step.function("prepare")(arguments)


def run_steps(outs: Sequence[Path], arguments: argparse.Namespace) -> list[str]:
    """Run the steps of every OUT and record them; returns lines to print.

    Of several ranks one runs them. Raises ResultError with every fault after all steps have run;
    the merges stay finished.
    """
    lines: list[str] = []
    faults: list[str] = []
    for out in outs:
        if read_manifest(out) is None:  # other ranks are still writing
            continue
        try:
            with evaluating(out):
                for step in _asked(arguments):
                    _run(step, out, arguments, lines, faults)
        except Busy:
            lines.append(f"{out}: another process evaluates it")
    if faults:
        if lines:
            print_line("\n".join(lines), sys.stdout)
        hint = "  the merge is finished and stays; nothing of this step was recorded"
        raise ResultError("\n".join([*faults, hint]))
    return lines


def _asked(arguments: argparse.Namespace) -> list[Step]:
    return [step for step in STEPS if step.is_asked_for(arguments)]


def _run(
    step: Step, out: Path, arguments: argparse.Namespace, lines: list[str], faults: list[str]
) -> None:
    """Run one step unless it is recorded already."""
    settings: Mapping[str, Any] = step.function("settings")(arguments)
    runs = read_runs(out, read_manifest(out) or {})
    if any(same_measurement(run, step.kind, settings) for run in runs):
        flag = f"--{step.option.rstrip('_').replace('_', '-')}"
        lines.append(f"{out}: {flag} is recorded already; nothing to do")
        return
    outcome: Outcome = step.function("run")(out, arguments)
    lines.append(outcome.text)
    faults += outcome.faults
    if not outcome.faults:
        record(out, [outcome.evaluation])
