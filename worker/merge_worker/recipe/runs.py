"""Checkpoints of one training run as the models of a recipe: `models: {run: DIR, last: 8}`.

Which checkpoints a run has is asked of the caller; the recipe then lists them, and keeps the
request under `picked_from`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from ..messages import printable
from ..registry import Registry
from .places import written
from .reader import DocumentReader
from .schedules import schedule_weights
from .schema import Module, Recipe, Run, RunRequest, Slice, Source
from .yaml_document import Document, Place

PICKED_FROM = "picked_from"
"""Top-level key of a recipe whose models were picked from a run: the request."""

NUMBERS = ("from", "to", "every", "last", "min")
MOST_WEIGHED = 1000
"""Checkpoints that a schedule is tried on before it is known how many there are."""
KEYS = ("run", *NUMBERS, "steps", "skip_incomplete", "schedule")


class Listed(NamedTuple):
    """The entries under `models` for a request, a line about them, and notes on the rest."""

    models: list[Any]
    summary: str = ""
    notes: tuple[str, ...] = ()


Find = Callable[[Mapping[str, Any], RunRequest, Registry], Listed]
"""Lists the checkpoints that a document asks for; the methods are those that it can name."""


def asks_for_run(value: object) -> bool:
    """Return whether the value of `models` asks for checkpoints of a run."""
    return isinstance(value, dict) and "run" in value


def read_run(reader: DocumentReader, value: object, path: Place) -> RunRequest:
    """Read a request; faults go to the reader."""
    body = reader.mapping(value, path, "checkpoints of a run", KEYS)
    run = body.get("run")
    if not isinstance(run, str) or not run:
        reader.fault((*path, "run"), "expected a folder of checkpoints, or org/name@PATTERN")
    numbers: dict[str, int] = {}
    for key in NUMBERS:
        number = body.get(key)
        if number is None:
            continue
        if type(number) is not int or number < (key not in ("from", "to")):
            shown = printable(repr(number))[:60]
            reader.fault((*path, key), f"expected a whole number, got {shown}")
        else:
            numbers[key] = number
    steps = body.get("steps") or []
    if not isinstance(steps, list) or not all(type(step) is int and step >= 0 for step in steps):
        reader.fault((*path, "steps"), "expected a list of steps, such as [1000, 2000, 5000]")
        steps = []
    for key in ("from", "to", "every"):
        if steps and key in numbers:
            reader.fault((*path, key), "conflicts with 'steps', which names the checkpoints")
    here = (*path, "skip_incomplete")
    skip = reader.flag(body.get("skip_incomplete") or False, here)
    schedule = body.get("schedule")
    if schedule is not None:
        try:
            schedule_weights(str(schedule), MOST_WEIGHED)
        except UsageError as error:
            reader.fault((*path, "schedule"), str(error))
    return RunRequest(
        run=str(run),
        numbers=numbers,
        steps=tuple(sorted(set(steps))),
        skip_incomplete=skip,
        schedule=None if schedule is None else str(schedule),
    )


def entries(
    words: Sequence[str], document: Mapping[str, Any], request: RunRequest, methods: Registry
) -> list[dict[str, object]]:
    """Return the entries under `models` for picked checkpoints, the oldest first.

    Their weights are those of the schedule; equal ones where the method takes weights and the
    recipe has none. Checkpoints of weight 0 are left out. Raises UsageError.
    """
    method = methods.get(str(document.get("merge_method")).lower())
    takes_weight = any(p.name == "weight" for p in method.parameters)
    if request.schedule and not takes_weight:
        raise UsageError(f"schedule: the method '{method.name}' takes no weights")
    shared = document.get("parameters")
    given = isinstance(shared, dict) and bool({"weight", "schedule"} & shared.keys())
    if not takes_weight or (given and not request.schedule):
        return [{"model": word} for word in words]
    weights = schedule_weights(request.schedule or "uniform", len(words))
    if request.schedule is None:
        weights = (1.0,) * len(words)
    return [
        {"model": word, "parameters": {"weight": weight}}
        for word, weight in zip(words, weights, strict=True)
        if weight
    ]


class ListedDocuments(NamedTuple):
    """Documents without open runs, their text, and what was found by the number of a document."""

    documents: list[Document]
    text: str
    found: dict[int, Listed]


def list_runs(
    documents: list[Document], text: str, find: Find | None, folder: Path, methods: Registry
) -> ListedDocuments:
    """Return the documents with the checkpoints of their runs listed, if there is who `find`s them.

    Raises UsageError for a request with faults, and what `find` raises.
    """
    found: dict[int, Listed] = {}
    listed = list(documents)
    for number, document in enumerate(documents if find else ()):
        body = document.value
        if not isinstance(body, dict) or not asks_for_run(body.get("models")):
            continue
        reader = DocumentReader(document, folder)
        request = read_run(reader, body["models"], ("models",))
        if reader.faults:
            raise UsageError("\n".join(reader.faults))
        assert find is not None
        try:
            found[number] = find(body, request, methods)
        except UsageError as error:
            raise UsageError(f"{document.place(('models',))}: {error}") from None
        models = {"models": found[number].models, PICKED_FROM: request.as_mapping()}
        listed[number] = replace(document, value={**body, **models})
    if found:
        text = "---\n".join(written(document.value) for document in listed)
    return ListedDocuments(listed, text, found)


def unlisted(reader: DocumentReader, value: object) -> tuple[Run, Module]:
    """Read checkpoints of a run that are not picked yet: the run itself stands for them."""
    path: Place = ("models",)
    request = read_run(reader, value, path)
    source = Source(
        reader.model(request.run, (*path, "run")), None, {}, reader.document.place(path)
    )
    part = Slice((source,), None, {}, source.place)
    return Run(request, listed=False), Module("default", (part,), {})


def with_found(recipe: Recipe, found: Listed | None) -> Recipe:
    """Return a recipe that says which checkpoints were picked for it, and warns of the others."""
    if found is None or recipe.run is None:
        return recipe
    run = replace(recipe.run, summary=found.summary, notes=found.notes)
    return replace(recipe, run=run, warnings=(*found.notes, *recipe.warnings))
