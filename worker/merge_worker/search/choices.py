"""Models of a recipe that an average may be made of, and their weights as values of a search."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..method import Method
from ..recipe.places import Place
from ..recipe.schema import plays_base
from .space import Choice, Dimension

GREEDY, CATEGORY = "greedy", "category"
"""Samplers that choose models. Both take a recipe with a list of models, each with a weight."""
WEIGHT = "models.{}.parameters.weight"
EVERY_WEIGHT = WEIGHT.format("*")


def weighted_models(base: Mapping[str, Any], method: Method, where: str) -> dict[int, str]:
    """Return the models of a recipe that have a weight, by their position in its list.

    Raises UsageError for a recipe without such a list, or with fewer than two of them.
    """
    if not any(p.name == "weight" and p.per_model for p in method.parameters):
        raise UsageError(
            f"{where}: recipe: {method.name} has no weights; this sampler needs a method that has, "
            f"such as linear"
        )
    entries = base.get("models")
    if not isinstance(entries, list):
        raise UsageError(f"{where}: recipe: this sampler needs 'models', a list, and no slices")
    words = [entry.get("model") if isinstance(entry, dict) else entry for entry in entries]
    own_base = base.get("base_model") if plays_base(method) else None
    found = {i: word for i, word in enumerate(words) if isinstance(word, str) and word != own_base}
    if len(found) < 2:
        raise UsageError(f"{where}: recipe: this sampler needs two or more models to choose from")
    return found


def with_weights(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose models are mappings, each with a number as its weight."""
    changed = copy.deepcopy(dict(base))
    entries = changed.get("models")
    if not isinstance(entries, list):
        return changed
    changed["models"] = [{"model": e} if isinstance(e, str) else e for e in entries]
    shared = (changed.get("parameters") or {}).get("weight")
    for entry in changed["models"]:
        if not isinstance(entry, dict) or entry.get("model") == changed.get("base_model"):
            continue
        own = entry["parameters"] = dict(entry.get("parameters") or {})
        own["weight"] = _number(own.get("weight", shared))
    return changed


def _number(weight: Any) -> int | float:
    """Return a weight; 1 for one that varies over layers, or that takes a model away."""
    real = isinstance(weight, int | float) and not isinstance(weight, bool) and weight > 0
    return weight if real else 1.0


def greedy_space(base: Mapping[str, Any], models: Mapping[int, str]) -> list[Dimension]:
    """Return the space of a greedy soup: each model with its weight, or with weight 0."""
    return [
        Choice(
            Place.read(WEIGHT.format(number), "space"),
            (0, base["models"][number]["parameters"]["weight"]),
        )
        for number in models
    ]
