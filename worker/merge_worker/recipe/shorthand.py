"""Direct merges: OUT, models and weights on a command line as the text of a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..messages import counted, nearest, printable
from ..method import Method
from ..options import DEFAULTS, with_defaults
from ..registry import OWN, Registry
from .experts import MOE
from .places import written
from .schedules import schedule_weights
from .schema import RunRequest, find_method

_NUMBERS = {"from_": "from", "to": "to", "every": "every", "last": "last", "min": "min"}
RUN_OPTIONS = {**{name: f"--{key}" for name, key in _NUMBERS.items()}, "steps": "--steps"}
"""Options that pick checkpoints of a run, by the names of their values."""


def direct_recipe(
    models: Sequence[str],
    *,
    method: str | Method = DEFAULTS["method"],
    weights: Sequence[float] | None = None,
    base_model: str | None = None,
    dtype: str | None = None,
    parameters: Mapping[str, object] | None = None,
) -> str:
    """Return the recipe text of a direct merge. Raises UsageError if weights do not fit.

    `parameters` are values of the method by name; a list for a parameter of each model has one
    value for each model but the base, in order.
    """
    if isinstance(method, str):
        method = find_method(method, "--method")
    if method.name == MOE:
        raise UsageError(f"--method {MOE}: a mixture is written as a recipe with 'experts'")
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
    shared, own = _divided(parameters or {}, method, merged)
    if takes_weight and "weight" not in {*shared, *own}:
        own["weight"] = list(weights or [1.0] * len(merged))
    entries: list[dict[str, object]] = [{"model": word} for word in merged]
    for number, entry in enumerate(entries if own else ()):
        entry["parameters"] = {name: values[number] for name, values in own.items()}
    recipe: dict[str, object] = {"merge_method": method.name}
    recipe |= {"base_model": base_model} if base_model else {}
    recipe |= {"models": entries}
    recipe |= {"parameters": shared} if shared else {}
    recipe |= {"out_dtype": dtype} if dtype not in (None, "same") else {}
    return written(recipe)


def _divided(
    given: Mapping[str, object], method: Method, models: Sequence[str]
) -> tuple[dict[str, object], dict[str, list[object]]]:
    """Return the values that all models share, and lists with a value for each of them."""
    shared: dict[str, object] = {}
    own: dict[str, list[object]] = {}
    per_model = {p.name for p in (*method.parameters, *method.modifiers) if p.per_model}
    for name, value in given.items():
        if name not in per_model or not isinstance(value, list):
            shared[name] = value
        elif len(value) == len(models):
            own[name] = value
        else:
            listed = ", ".join(printable(model) for model in models)
            raise UsageError(
                f"--param {name} has {counted(len(value), 'values')} for "
                f"{counted(len(models), 'models')} ({listed}); give one, or one per model"
            )
    return shared, own


def read_parameters(words: Sequence[str], method: Method) -> dict[str, object]:
    """Return the values of `--param NAME=VALUE` by name. Raises UsageError.

    A value is a number, a word, or several of either with commas between.
    """
    known = {p.name for p in (*method.parameters, *method.modifiers)}
    values: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not text.strip():
            raise UsageError(f"--param {printable(word)}: write NAME=VALUE, such as t=0.5")
        if name not in known:
            raise UsageError(
                f"--param {printable(name)}: {method.name} does not read it{nearest(name, known)}"
                f"; it has {', '.join(sorted(known))}"
            )
        if name in values:
            raise UsageError(f"--param {name} is given twice; drop one")
        parts = [_value(part) for part in text.strip("[] ").split(",")]
        values[name] = parts if len(parts) > 1 or text.startswith("[") else parts[0]
    return values


def _value(word: str) -> object:
    """Read a number, true, false, or any other word, as YAML does."""
    plain = word.strip()
    for read in (int, float, {"true": True, "false": False}.__getitem__):
        try:
            return read(plain)
        except (ValueError, KeyError):
            continue
    return plain


def recipe_from_values(
    models: Sequence[str], values: Mapping[str, Any], methods: Registry = OWN
) -> str:
    """Return the recipe text of a direct merge with option values of `option_table`, by name."""
    given = with_defaults(values)
    method = find_method(given["method"], "--method", methods)
    parameters = read_parameters(given["param"] or (), method)
    if given["no_normalize"]:
        parameters.setdefault("normalize", False)
    for other in ("weights", "schedule"):
        if "weight" in parameters and given[other]:
            fact = "--param weight and --weights or --schedule exclude each other"
            raise UsageError(f"{fact}; keep one")
    if given["weights"] and given["schedule"]:
        raise UsageError("--schedule and --weights exclude each other; keep one")
    if names_run(models, given):
        return _recipe_of_run(models, given, method, parameters)
    weights = given["weights"] and [parse_number(word) for word in given["weights"].split(",")]
    if given["schedule"]:
        checkpoints = [model for model in models if model != given["base_model"]]
        weights = schedule_weights(given["schedule"], len(checkpoints))
        models = [model for model, weight in zip(checkpoints, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
    return direct_recipe(
        models,
        method=method,
        weights=weights,
        base_model=given["base_model"],
        dtype=given["dtype"],
        parameters=parameters,
    )


def names_run(models: Sequence[str], values: Mapping[str, Any]) -> bool:
    """Return whether a direct merge takes checkpoints of a run instead of models.

    It does with an option on steps, or with a pattern of revisions of a Hub model.
    """
    asked = any(values.get(name) for name in (*RUN_OPTIONS, "windows", "skip_incomplete"))
    return asked or (len(models) == 1 and "*" in models[0])


def _recipe_of_run(
    models: Sequence[str], given: Mapping[str, Any], method: Method, parameters: dict[str, object]
) -> str:
    """Return the recipe text of a merge of checkpoints of a run, which are picked later."""
    if len(models) != 1:
        option = next((RUN_OPTIONS[name] for name in RUN_OPTIONS if given.get(name)), "--windows")
        raise UsageError(
            f"{option}: {counted(len(models), 'models are')} given; give one, the folder that "
            f"holds the checkpoints"
        )
    lists = [name for name, value in parameters.items() if isinstance(value, list)]
    if given["weights"] or lists:
        option = "--weights" if given["weights"] else f"--param {lists[0]}"
        raise UsageError(
            f"{option}: has a value for each model, and the checkpoints are picked later; "
            f"--schedule weighs them"
        )
    request = RunRequest(
        run=models[0],
        numbers={key: _whole(given[n], key) for n, key in _NUMBERS.items() if given.get(n)},
        steps=tuple(_whole(word, "steps") for word in (given["steps"] or "").split(",") if word),
        skip_incomplete=given["skip_incomplete"],
        schedule=given["schedule"],
    )
    recipe: dict[str, object] = {"merge_method": method.name}
    recipe |= {"base_model": given["base_model"]} if given["base_model"] else {}
    recipe |= {"models": request.as_mapping()}
    recipe |= {"parameters": parameters} if parameters else {}
    recipe |= {"out_dtype": given["dtype"]} if given["dtype"] not in (None, "same") else {}
    return written(recipe)


def recipes_from_values(
    models: Sequence[str], values: Mapping[str, Any], methods: Registry = OWN
) -> dict[str, str]:
    """Return the recipe of each result of a direct merge, by its folder in OUT: "" for OUT itself.

    With `windows` or several schedules there is a result for each window and schedule:
    `last5-minus-sqrt`, `last10-ema-0.9`.
    """
    given = with_defaults(values)
    windows = given["windows"].split(",") if given["windows"] else [""]
    schedules = given["schedule"].split(",") if given["schedule"] else [None]
    if not given["windows"] and len(schedules) == 1:
        return {"": recipe_from_values(models, given, methods)}
    if given["windows"] and (given["last"] or given["min"]):
        option = "--last" if given["last"] else "--min"
        raise UsageError(f"{option} conflicts with --windows, which says how many; keep one")
    recipes: dict[str, str] = {}
    for window in windows:
        for schedule in schedules:
            numbers = {"last": window, "min": window} if window else {}
            parts = [f"last{window}" if window else "", (schedule or "").replace(":", "-")]
            text = recipe_from_values(models, {**given, **numbers, "schedule": schedule}, methods)
            recipes["-".join(filter(None, parts))] = text
    return recipes


def _whole(word: str, key: str) -> int:
    """Parse a number of an option on steps. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,15}", word.strip()):
        raise UsageError(f"--{key}: '{printable(word)}' is not a whole number")
    return int(word)


def parse_number(word: str) -> float:
    """Parse one word of `--weights`. Raises UsageError if it is not a number."""
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"--weights: '{printable(word)}' is not a number; write 2,1,1") from None
