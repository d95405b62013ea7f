"""The text of a search for the models at hand: a recipe, ranges for its values, an evaluation.

The text is complete but for the file of the evaluation, which only the user knows. Ranges hold what
papers use: coefficients from 0 to about 1.5 (arXiv:2212.04089, arXiv:2511.21437), densities from
0.1 (arXiv:2306.01708). One coefficient decides more than any other value, so few values vary: where
a method divides by the sum of the weights, the first weight stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ..method import BaseRole, Method
from ..registry import OWN

SHARED_RANGES: dict[str, Any] = {
    "t": [0, 1],
    "density": [0.1, 1],
    "lambda": [0.2, 1.5],
    "alpha": [0.2, 1.5],
    "select_topk": [0.1, 1],
    "epsilon": {"low": 1e-6, "high": 1e-3, "log": True},
}
"""Ranges of values that all models share; `density` may be of each model too."""
INTERCHANGEABLE = ("ties", "dare_ties", "task_arithmetic")
"""Methods that read the same values; the last one has no densities."""
HIGHEST_WEIGHT = 1.5
TRIALS_EACH, LEAST_TRIALS, MOST_TRIALS = 15, 20, 100


def search_text(recipe: Mapping[str, Any]) -> str | None:
    """Return the text of a search over the values of a recipe of one document.

    None if nothing in it can vary: a method without values, `modules`, or a method from outside.
    """
    models = recipe.get("models")
    if isinstance(models, Sequence) and not isinstance(models, str):
        # Values stand in mappings; a model may be given by its name alone.
        entries = [{"model": entry} if isinstance(entry, str) else entry for entry in models]
        recipe = {**recipe, "models": entries}
    space = dict(_space(recipe))
    if not space:
        return None
    trials = min(MOST_TRIALS, max(LEAST_TRIALS, TRIALS_EACH * len(space)))
    lines = [
        "# save as search.yml, then: merge-launch search search.yml local",
        "recipe:",
        *(f"  {line}" for line in _yaml(recipe)),
        "out: runs",
        "space:",
        *(f"  {path}: {_in_one_line(values)}" for path, values in space.items()),
        "perplexity: held-out.txt  # your text, which no model was trained on; or",
        "# evaluate: 'COMMAND'     # any command that prints JSON, with a path into it:",
        "# score: PATH             # and direction: maximize",
        "direction: minimize",
        f"trials: {trials}",
        "seed: 0",
        "keep: best",
    ]
    return "\n".join(lines) + "\n"


def _in_one_line(values: Any) -> str:
    # JSON has 1e-06, which YAML reads as text.
    text: str = yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=math.inf)
    return text.strip()


def _yaml(recipe: Mapping[str, Any]) -> list[str]:
    text: str = yaml.safe_dump(
        dict(recipe), sort_keys=False, allow_unicode=True, default_flow_style=None, width=math.inf
    )
    return text.splitlines()


def _space(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    name = recipe.get("merge_method")
    if not isinstance(name, str) or name not in OWN.names() or recipe.get("modules"):
        return
    method = OWN.get(name)
    per_model = {p.name for p in method.parameters if p.per_model}
    shared = recipe.get("parameters")
    values = shared if isinstance(shared, Mapping) else {}
    weights = dict(_weights(recipe, method, values)) if "weight" in per_model else {}
    yield from weights.items()
    known = {p.name for p in method.parameters}
    for parameter, span in SHARED_RANGES.items():
        if parameter not in known or (parameter == "epsilon" and parameter in per_model):
            continue
        # A factor of all task vectors adds nothing where each weight varies by itself.
        if parameter == "lambda" and weights and not _divides_by_sum(method, values):
            continue
        if parameter in per_model:
            own = [path for path, entry in _models(recipe, method) if parameter in _own(entry)]
            if own:
                yield from ((f"{path}.parameters.{parameter}", span) for path in own)
                continue
        yield f"parameters.{parameter}", span
    if name in INTERCHANGEABLE[:2]:
        first = [name, *(other for other in INTERCHANGEABLE if other != name)]
        yield "merge_method", {"choices": first}


def _weights(
    recipe: Mapping[str, Any], method: Method, values: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    models = _models(recipe, method)
    if len(models) == 1 and any(p.name == "lambda" for p in method.parameters):
        return
    if not _divides_by_sum(method, values) or len(models) == 1:
        yield from ((f"{path}.parameters.weight", [0, HIGHEST_WEIGHT]) for path, _ in models)
        return
    # Only ratios count, so the first weight stays; another may be twice as large.
    first = _number(_own(models[0][1]).get("weight", values.get("weight", 1))) if models else 1.0
    yield from ((f"{path}.parameters.weight", [0, round(2 * first, 4)]) for path, _ in models[1:])


def _number(value: object) -> float:
    """Return a weight, or 1 for a list of values by layer or by filter and for weights below 0."""
    return float(value) if isinstance(value, int | float) and value > 0 else 1.0


def _divides_by_sum(method: Method, values: Mapping[str, Any]) -> bool:
    for parameter in method.parameters:
        if parameter.name in ("normalize", "normalize_weights"):
            return bool(values.get(parameter.name, parameter.default))
    return method.name == "nuslerp"


def _models(recipe: Mapping[str, Any], method: Method) -> list[tuple[str, Any]]:
    """Return path and entry of every model that has a weight; of slices, those of the first."""
    if isinstance(recipe.get("models"), Sequence):
        prefix, entries = "models", recipe["models"]
    else:
        slices = recipe.get("slices") or [{}]
        numbers = {len(part.get("sources") or ()) for part in slices}
        prefix, entries = "slices.*.sources", slices[0].get("sources") or ()
        if len(numbers) > 1:
            return []
    base = recipe.get("base_model") if method.base is not BaseRole.IGNORED else None
    return [
        (f"{prefix}.{number}", entry)
        for number, entry in enumerate(entries)
        if isinstance(entry, Mapping) and (base is None or entry.get("model") != base)
    ]


def _own(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of one model."""
    values = entry.get("parameters")
    return values if isinstance(values, Mapping) else {}
