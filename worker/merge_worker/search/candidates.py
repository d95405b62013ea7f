"""Candidates of a search: its parents, their even average, the recipe as it stands, and trials.

Each has a folder of its own in OUT, with these files:

    recipe.yml        what is merged; a parent that is a folder has none
    model/            the merge; of a parent, links to its files
    evaluate.out      what the evaluation printed; evaluate.err: its errors
    score.json        the result, written once the candidate is finished
    lock              the worker that has it in hand, which touches this file
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.folder import is_hub_id
from ..recipe.places import labels
from ..recipe.schema import ModelRef, Recipe, parse_model
from ..recipe.yaml_document import read_documents
from .definition import Search, digest
from .space import Choice, Coordinate, written

PARENT, AVERAGE, STANDS, TRIAL = "parent", "average", "recipe", "trial"
RECIPE, MODEL, SCORE, LOCK, TWIN = "recipe.yml", "model", "score.json", "lock", "same-as"
SHARED = ("dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template", "key_map")
"""Keys of a recipe that the even average takes over."""


@dataclass(frozen=True)
class Candidate:
    """A model to score. `text` is the recipe; without one, `source` is the folder of a parent.

    `values` are those of the space, by their labels.
    """

    name: str
    kind: str
    text: str | None
    source: str | None = None
    trial: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Digest that candidates with the same result have in common."""
        if self.text is None:
            return digest(["parent", self.source])
        return digest(read_documents(self.text, self.name)[0].value)


def trial_name(number: int) -> str:
    return f"t{number:04d}"


def trial_candidate(search: Search, number: int, drawn: Mapping[str, Coordinate]) -> Candidate:
    """Return the candidate of a trial with these coordinates. Raises PlaceError."""
    values = written(search.space, drawn)
    named = dict(zip(value_labels(search), values.values(), strict=True))
    return Candidate(trial_name(number), TRIAL, search.text_of(values), trial=number, values=named)


def value_labels(search: Search) -> list[str]:
    """Return a short name for each value that varies, in the order of the space."""
    middle = {
        name: axis.options[0] if hasattr(axis, "options") else axis.low
        for dimension in search.space
        for name, axis in dimension.axes.items()
    }
    return labels([place.parts for place in written(search.space, middle)])


def fixed_candidates(search: Search, folder: Path) -> list[Candidate]:
    """Return the candidates that are always scored, before all trials."""
    found = [*_parents(search, folder)]
    average = _average(search)
    if average is not None:
        found.append(Candidate(AVERAGE, AVERAGE, average))
    if search.stands is not None:
        found.append(Candidate(STANDS, STANDS, search.text_of({})))
    return found


def _parents(search: Search, folder: Path) -> Iterator[Candidate]:
    yield from (candidate for _, candidate in parents_by_model(search, folder))


def parents_by_model(search: Search, folder: Path) -> Iterator[tuple[ModelRef, Candidate]]:
    """Yield every model that the recipe names, with its candidate."""
    refs = [ref for recipe in _documents(search.example) for ref in recipe.own_refs()]
    stages = {stage.name for stage in search.example.stages}
    for dimension in search.space:
        # Models that only some candidates are made of.
        if isinstance(dimension, Choice) and dimension.place.parts[-1] in ("model", "base_model"):
            words = (choice for choice in dimension.choices if isinstance(choice, str))
            refs += [parse_model(word, folder) for word in words]
    taken: set[str] = set()
    for ref in dict.fromkeys(ref for ref in refs if ref.path not in stages):
        stem = "+".join(Path(word).name for word in (ref.path, ref.lora) if word)
        name = plain = f"{PARENT}-{re.sub(r'[^A-Za-z0-9_.+]+', '-', stem).strip('-.') or 'model'}"
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        path = folder / Path(ref.path).expanduser()
        if ref.lora or ref.revision or is_hub_id(ref.path) or not path.is_dir():
            # An adapter, a file or a model of the Hub is written out by a merge of one model.
            yield ref, Candidate(name, PARENT, _alone(ref))
        else:
            yield ref, Candidate(name, PARENT, None, str(path))


def _documents(recipe: Recipe) -> tuple[Recipe, ...]:
    return (*recipe.stages, recipe)


def _alone(ref: ModelRef) -> str:
    import yaml

    models = [{"model": str(ref), "parameters": {"weight": 1}}]
    return yaml.safe_dump({"merge_method": "linear", "models": models}, sort_keys=False)


def _average(search: Search) -> str | None:
    """Return the recipe of the even average of the models, without the base if two are left."""
    import yaml

    recipe = search.example
    stages = {stage.name for stage in recipe.stages}
    refs = [ref for ref in recipe.own_refs() if ref.path not in stages]
    without_base = [ref for ref in refs if ref != recipe.base]
    chosen = without_base if len(without_base) > 1 else refs
    if len(chosen) < 2:
        return None
    models = [{"model": str(ref), "parameters": {"weight": 1}} for ref in chosen]
    kept = {key: search.base[key] for key in SHARED if search.base.get(key) is not None}
    table = {"merge_method": "linear", "models": models, **kept}
    return yaml.safe_dump(table, sort_keys=False, allow_unicode=True)
