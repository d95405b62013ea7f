"""The end of a search: the best candidate again, `validate`, and the weights that are kept."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import UsageError
from ..messages import print_line
from ..output.files import output_errors, write_file
from ..output.lock import Watch
from .candidates import MODEL, PARENT, RECIPE, Candidate, fixed_candidates
from .definition import Measure, Search, digest
from .results import (
    REPEAT,
    VALIDATION,
    Result,
    best_of,
    ranked,
    read_result,
    read_results,
    write_result,
)
from .work import Workshop, drop_weights

FINISH_LOCK, BEST = "finish", "best.yml"


def finish(search: Search, workshop: Workshop, watch: Watch) -> None:
    """Do what is done once, by one worker, after the last trial. UsageError if all failed."""
    results = read_results(workshop.out)
    best = best_of(results, search.direction)
    if best is None:
        why = next((f": {r.message}" for r in results if r.message), "")
        raise UsageError(f"{workshop.out}: no candidate has a score{why}")
    lock = watch.take(workshop.out / "study" / FINISH_LOCK)
    if lock is None:
        return
    with contextlib.ExitStack() as held:
        held.push(lock)
        candidate = _candidate(workshop.out, best)
        recipe = workshop.out / best.name / RECIPE
        with output_errors(recipe):
            write_file(workshop.out / BEST, recipe.read_bytes())
        for number in range(1, search.repeat + 1):
            _measure(workshop, candidate, search.measure, REPEAT.format(number))
        if search.validation is not None:
            for each in (candidate, *_parents(search, workshop, results)):
                _measure(workshop, each, search.validation, VALIDATION)
        _drop(search, workshop, results)


def _candidate(out: Path, result: Result) -> Candidate:
    text = (out / result.name / RECIPE).read_text(encoding="utf-8")
    return Candidate(result.name, result.kind, text, trial=result.trial, values=result.values)


def _parents(search: Search, workshop: Workshop, results: list[Result]) -> Iterator[Candidate]:
    scored = {result.name for result in results if result.is_done}
    for candidate in fixed_candidates(search, workshop.folder):
        if candidate.kind == PARENT and candidate.name in scored:
            yield candidate


def _measure(workshop: Workshop, candidate: Candidate, measure: Measure, name: str) -> None:
    """Score a candidate once more, unless that was done; the result goes to a file of its own."""
    place = workshop.place(candidate)
    evaluation = digest(measure.facts())
    earlier = read_result(place / name)
    if earlier is not None and earlier.is_done and earlier.evaluation == evaluation:
        return
    result = workshop.result(candidate, measure, name.removesuffix(".json"), evaluation)
    if result.message:
        text = f"merge-worker: warning: {candidate.name}: {result.message}"
        print_line(text, sys.stderr)
    with output_errors(place):
        write_result(place, result, name)


def _drop(search: Search, workshop: Workshop, results: list[Result]) -> None:
    """Remove the weights that `keep` does not name, and those of parents that had to be merged."""
    if search.keep is None:
        return
    made = [r for r in results if r.kind != PARENT and r.same_as is None]
    kept = ranked(made, search.direction)[: search.keep]
    for result in results:
        model = workshop.out / result.name / MODEL
        if result not in kept and model.is_dir():
            drop_weights(model)
