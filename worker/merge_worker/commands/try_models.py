"""`merge-worker try`: models load in transformers without a fault, and what they say side by side.

The code of a model runs here, and only that of transformers unless --trust-remote-code allows more.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line.parser import Parser
from ..errors import ResultError, UsageError, WorkerError, input_errors
from ..messages import print_line, printable
from ..output.model_card import public_model
from ..output.scores import Evaluation, Outcome
from ..system.torch_startup import require_torch
from ..units import DEVICES, device_word, positive_integer
from .options import add_options

if TYPE_CHECKING:
    from ..trial.run import Trial

TOKENS = 40
WIDTH = 100


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="+", help="folders, Hub names, or base+adapter")
    add(
        "--prompt",
        metavar="PROMPT",
        action="append",
        default=[],
        help="a text to go on from (repeatable); default: three short ones",
    )
    add(
        "--tokens",
        metavar="N",
        type=positive_integer,
        default=TOKENS,
        help=f"tokens to generate for each prompt; default: {TOKENS}",
    )
    add(
        "--device",
        metavar="|".join(DEVICES),
        type=device_word,
        default="auto",
        help="where the model runs, as a whole; default: auto, the first GPU, else the CPU",
    )
    add_options(parser, "try")


@input_errors("try")
def command(arguments: argparse.Namespace) -> str:
    """Return texts or JSON. ResultError names every fault of every model, after the output."""
    require_torch("try")
    from ..trial.libraries import require_transformers
    from ..trial.run import PROMPTS, TrialOptions, run_trial

    require_transformers("try")
    if not all(prompt.strip() for prompt in arguments.prompt):
        raise UsageError("try: --prompt is empty; give some text")
    prompts = tuple(arguments.prompt) or PROMPTS
    trust = arguments.trust_remote_code
    chosen = TrialOptions(prompts, arguments.tokens, arguments.device, trust)
    labels = _labels(arguments.model)
    trials: list[Trial] = []
    errors: list[WorkerError] = []
    for word, label in zip(arguments.model, labels, strict=True):
        try:
            trials.append(run_trial(word, label, chosen))
        except WorkerError as error:
            errors.append(error)
    text = _as_json(trials) if arguments.json else report(trials, prompts)
    faults = faults_of(trials)
    if not errors and not faults:
        return text
    if trials:
        print_line(text, sys.stdout)
    if not errors:
        raise ResultError("\n".join(faults))
    raise type(errors[0])("\n".join([*map(str, errors), *faults]))


def trial_prepare(arguments: argparse.Namespace) -> None:
    """Check before a merge that its result can be tried. UsageError."""
    from ..trial.libraries import load_transformers

    load_transformers("--try")


def trial_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what makes two trials the same."""
    from ..trial.run import PROMPTS

    return {"prompts": list(PROMPTS), "tokens": TOKENS}


def trial_run(out: Path, arguments: argparse.Namespace) -> Outcome:
    """Try a finished merge."""
    from ..trial.run import PROMPTS, TrialOptions, run_trial

    chosen = TrialOptions(PROMPTS, TOKENS, arguments.device, arguments.trust_remote_code)
    trial = run_trial(str(out), printable(out.resolve().name), chosen)
    summary = (
        f"Loads in transformers {trial.transformers} as {trial.kind}: every tensor has its place."
    )
    settings = trial_settings(arguments)
    evaluation = Evaluation("try", settings, summary=summary, facts={"trial": trial.json()})
    return Outcome(evaluation, report([trial], PROMPTS), faults_of([trial]))


def _labels(words: Sequence[str]) -> tuple[str, ...]:
    """Return short names of models, as many parts of their paths as make them distinct."""
    from ..comparison.models import short_labels

    names = tuple(printable(public_model(word)) for word in words)
    return names if len(set(names)) == len(names) else short_labels(words)


def faults_of(trials: Sequence[Trial]) -> list[str]:
    """Return a line for each fault of each model."""
    return [f"{trial.model}: {fault}" for trial in trials for fault in trial.faults]


def _as_json(trials: Sequence[Trial]) -> str:
    return json.dumps({"models": [trial.json() for trial in trials]}, indent=1)


def report(trials: Sequence[Trial], prompts: Sequence[str]) -> str:
    """Return a line for each model, then every prompt with what each model said."""
    width = max((len(trial.model) for trial in trials), default=0)
    lines = [f"{trial.model:{width}}  {_summary(trial)}" for trial in trials]
    for trial in trials:
        lines += [f"warning: {trial.model}: {text}" for text in trial.warnings]
    for prompt in prompts:
        said = {t.model: text for t in trials for text in t.texts if text.prompt == prompt}
        if said:
            lines += ["", f"> {_one_line(prompt)}"]
            lines += [_said(model, said[model].text, width) for model in said]
    return "\n".join(lines)


def _summary(trial: Trial) -> str:
    if not trial.kind:
        return "does not load"
    facts = [trial.kind, f"{_count(trial.parameters)} parameters", trial.dtype]
    if trial.faults:
        return f"{', '.join(facts)}: faults, see below"
    how = " (chat template)" if trial.chat_template and trial.texts else ""
    return f"{', '.join(facts)}: every tensor has its place; {trial.did}{how}"


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _said(model: str, text: str, width: int) -> str:
    gap = " " * (width + 2)
    return textwrap.fill(
        _one_line(text) or "(nothing)",
        WIDTH,
        initial_indent=f"{model:{width}}  ",
        subsequent_indent=gap,
        break_on_hyphens=False,
    )


def _one_line(text: str) -> str:
    """Show the ends of lines in a text, which a table has no room for."""
    return printable(text.strip().replace("\n", "⏎ "))
