"""Trials of searches that choose models: `sampler: greedy` and `sampler: category`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from ..messages import printable
from ..recipe.places import Place
from ..recipe.schema import find_method, parse_model
from .candidates import parents_by_model, trial_name
from .choices import EVERY_WEIGHT, WEIGHT, weighted_models
from .definition import Search
from .results import Result
from .score_table import ScoreTable
from .soups import Expert, Members, category_experts, expert_models, greedy_candidates, ranked
from .space import Choice, Coordinates, Share

Results = Mapping[str, Result]
"""Results by the name of the candidate."""


def greedy_proposals(
    search: Search, folder: Path, results: Results, asked: Mapping[int, Coordinates]
) -> list[Coordinates]:
    """Return the averages to score next, the one that decides first; none at the end.

    `asked` are the trials so far, by number. The best single model is the first of them, so that
    the best trial is never worse. Further ones are for workers that would wait for others.
    """
    choices = [dimension for dimension in search.space if isinstance(dimension, Choice)]
    names = [choice.place.text for choice in choices]
    singles = _singles(search, folder, results)
    order = ranked(singles)
    if not order:
        raise UsageError(f"{search.where}: no model has a score; see the messages of the parents")
    taken, scores, running = set[Members](), dict[Members, float | None](), 0
    for number, coordinates in asked.items():
        members = frozenset(i for i, name in enumerate(names) if coordinates.get(name))
        result = results.get(trial_name(number))
        taken.add(members)
        if result is None:
            running += 1
        else:
            scores[members] = _signed(search, result)
    wanted = [frozenset({order[0]}), *greedy_candidates(singles, scores, running + 1)]
    return [
        {c.place.text: c.choices[i in members] for i, c in enumerate(choices)}
        for members in wanted
        if members not in taken
    ]


def _singles(search: Search, folder: Path, results: Results) -> list[float | None]:
    """Return the scores of the models alone, higher is better; None where there is none."""
    models = [search.base["models"][int(d.place.parts[1])]["model"] for d in search.space]
    found = [_parent(search, folder, results, model) for model in models]
    return [None if result is None else _signed(search, result) for result in found]


def _parent(search: Search, folder: Path, results: Results, model: str) -> Result | None:
    names = {ref: candidate.name for ref, candidate in parents_by_model(search, folder)}
    return results.get(names.get(parse_model(model, folder), ""))


def _signed(search: Search, result: Result) -> float | None:
    if not result.is_done or result.score is None:
        return None
    return result.score if search.maximizes else -result.score


def with_experts(search: Search, folder: Path, results: Results) -> Search:
    """Return the search over the weights of the best model of each group of tasks.

    Raises UsageError if one model is the best of all groups.
    """
    models = every = _weighted(search)
    if search.table is None:
        models, table = _table_of_parents(search, folder, results, models)
    else:
        table = search.table.of(list(models.values()), search.where)
    experts = category_experts(table.scores, search.threshold)
    positions = list(models)
    kept = [positions[number] for number in expert_models(experts)]
    if len(kept) < 2:
        groups = "; ".join(_tasks(expert, table) for expert in experts)
        raise UsageError(
            f"{search.where}: {printable(models[kept[0]])} is the best model of every group of "
            f"tasks ({groups}), so there is nothing to average"
        )
    entries = search.base["models"]
    # A base stays, whatever its place.
    left = [i for i in range(len(entries)) if i in kept or i not in every]
    base = {**search.base, "models": [entries[i] for i in left]}
    places = tuple(Place.read(WEIGHT.format(left.index(i)), "space") for i in kept)
    space = (Share(Place.read(EVERY_WEIGHT, "space"), 1.0, places),)
    names = (f"{printable(models[positions[e.model]])} for {_tasks(e, table)}" for e in experts)
    note = f"{search.where}: experts: {'; '.join(names)}"
    return dataclasses.replace(search, base=base, space=space, warnings=(*search.warnings, note))


def _weighted(search: Search) -> dict[int, str]:
    """Return the models of the recipe that have a weight, by their position."""
    method = find_method(search.example.method, search.where, search.example.methods)
    return weighted_models(search.base, method, search.where)


def _table_of_parents(
    search: Search, folder: Path, results: Results, models: Mapping[int, str]
) -> tuple[dict[int, str], ScoreTable]:
    """Return the models with scores, and the table of the single values of their scores.

    A value whose weight is below 0, or of a search that minimizes, is better if lower.
    """
    found = {}
    for number, model in models.items():
        result = _parent(search, folder, results, model)
        if result is not None and result.is_done:
            found[number] = result
    if len(found) < 2:
        fact = "fewer than two models have scores; see the messages of the parents"
        raise UsageError(f"{search.where}: {fact}")
    signs = {
        path: 1.0 if (weight > 0) == search.maximizes else -1.0
        for path, weight in search.measure.score
    }
    rows = tuple(
        tuple(sign * result.parts[task] for task, sign in signs.items())
        for result in found.values()
    )
    chosen = {number: models[number] for number in found}
    return chosen, ScoreTable(tuple(chosen.values()), tuple(signs), rows)


def _tasks(expert: Expert, table: ScoreTable) -> str:
    return ", ".join(printable(table.tasks[task]) for task in expert.tasks)
