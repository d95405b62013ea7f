"""Direct merges: OUT, models and weights on a command line as the text of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..messages import counted, printable
from ..method import Method
from ..options import DEFAULTS, with_defaults
from ..registry import OWN, Registry
from .schedules import schedule_weights
from .schema import find_method


def direct_recipe(
    models: Sequence[str],
    *,
    method: str | Method = DEFAULTS["method"],
    weights: Sequence[float] | None = None,
    base_model: str | None = None,
    dtype: str | None = None,
    parameters: Mapping[str, object] | None = None,
) -> str:
    """Return the recipe text of a direct merge. Raises UsageError if weights do not fit."""
    if isinstance(method, str):
        method = find_method(method, "--method")
    if not models:
        raise UsageError("no models given; name OUT and then at least one model")
    for word in (*models, base_model or ""):
        if not word.isascii() and word != word.encode(errors="replace").decode():
            fact = "a name that is not UTF-8, which no recipe can hold"
            raise UsageError(f"{printable(word)}: {fact}\n  give the folder a link of another name")
    merged = [word for word in models if word != base_model]
    if weights is not None and len(weights) != len(merged):
        raise UsageError(
            f"--weights has {counted(len(weights), 'values')} for {counted(len(merged), 'models')} "
            f"({', '.join(printable(m) for m in merged)}); give one per model"
        )
    takes_weight = any(p.name == "weight" for p in method.parameters)
    if weights is not None and not takes_weight:
        raise UsageError(f"--weights: the method '{method.name}' takes no weights")
    entries: list[dict[str, object]] = [
        {"model": word, "parameters": {"weight": weight}} if takes_weight else {"model": word}
        for word, weight in zip(merged, weights or [1.0] * len(merged), strict=True)
    ]
    recipe: dict[str, object] = {"merge_method": method.name, "models": entries}
    recipe |= {"base_model": base_model} if base_model else {}
    recipe |= {"parameters": dict(parameters)} if parameters else {}
    recipe |= {"out_dtype": dtype} if dtype not in (None, "same") else {}
    return json.dumps(recipe, indent=1, ensure_ascii=False) + "\n"


def recipe_from_values(
    models: Sequence[str], values: Mapping[str, Any], methods: Registry = OWN
) -> str:
    """Return the recipe text of a direct merge with option values of `option_table`, by name."""
    given = with_defaults(values)
    weights = given["weights"] and [parse_number(word) for word in given["weights"].split(",")]
    if given["schedule"]:
        if weights:
            raise UsageError("--schedule and --weights exclude each other; keep one")
        checkpoints = [model for model in models if model != given["base_model"]]
        weights = schedule_weights(given["schedule"], len(checkpoints))
        models = [model for model, weight in zip(checkpoints, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
    return direct_recipe(
        models,
        method=find_method(given["method"], "--method", methods),
        weights=weights,
        base_model=given["base_model"],
        dtype=given["dtype"],
        parameters={"normalize": False} if given["no_normalize"] else {},
    )


def parse_number(word: str) -> float:
    """Parse one word of `--weights`. Raises UsageError if it is not a number."""
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"--weights: '{printable(word)}' is not a number; write 2,1,1") from None
