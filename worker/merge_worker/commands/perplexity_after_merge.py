"""`--perplexity FILE` of the commands that merge: OUT is measured, and that recorded."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from ..errors import input_errors
from ..messages import counted
from ..output.scores import Evaluation, Number, Outcome, Score, without_paths
from .perplexity import text_file, use_threads

OPTION = "--perplexity"


def after_prepare(arguments: argparse.Namespace) -> None:
    """Check before a merge that the text can be read and models be run. UsageError, InputError."""
    from ..inference.building import require_transformers
    from ..inference.texts import read_samples

    require_transformers(OPTION)
    read_samples(_text_of(arguments))


def after_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what makes two measurements the same: the text, and how it is cut."""
    from ..evaluation.perplexity import LENGTH

    data = _text_of(arguments)
    with input_errors(data):
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
    return {"data": data.name, "sha256": digest, "length": LENGTH, "stride": LENGTH}


def after_run(out: Path, arguments: argparse.Namespace) -> Outcome:
    """Measure a finished merge. ResultError if its loss is not a number."""
    from ..evaluation.perplexity import Settings, measure
    from ..evaluation.perplexity_table import as_json, table

    use_threads(arguments.threads)
    settings = Settings(device=arguments.device, trust_remote_code=arguments.trust_remote_code)
    measured = measure([str(out.absolute())], _text_of(arguments), settings, arguments.progress)
    (losses,) = measured.models
    perplexity, bits = losses.perplexity, losses.bits_per_byte
    error = None if losses.nats.error is None else perplexity * losses.nats.error
    task = _text_of(arguments).name
    scores = (
        Score(task, "perplexity", Number(perplexity, error), higher_is_better=False),
        Score(task, "bits_per_byte", Number(*bits), higher_is_better=False),
    )
    windows = counted(len(losses.windows), "windows")
    summary = (
        f"Perplexity {perplexity:.4g} and {bits.value:.4g} bits per byte on {task}: "
        f"{losses.tokens:,} tokens in {windows} of at most {measured.settings.length}."
    )
    facts = {"perplexity": without_paths(as_json(measured))}
    kept = Evaluation("perplexity", after_settings(arguments), scores, summary, facts)
    return Outcome(kept, table(measured))


def _text_of(arguments: argparse.Namespace) -> Path:
    return Path(arguments.relative_to) / text_file(arguments.perplexity, OPTION)
