"""Recipes for scripts/bench that merge-worker and mergekit read as the same merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BY_IMPORTANCE = frozenset({"fisher", "ota", "regmean"})
"""Methods that read importance files, which the bench makes beside the models."""

OURS = frozenset({"cabs", "consensus_ta", "consensus_ties", "iso_c", "tsvm"}) | BY_IMPORTANCE
"""Methods that the peer does not have."""

# The base is the first model; PAIR methods interpolate to the second.
PAIR = {"slerp", "nearswap", "arcee_fusion"}
NO_BASE = {"linear", "karcher", "multislerp", "passthrough", "fisher", "regmean"}
UNWEIGHTED = {"ota", *PAIR, "karcher", "model_stock", "sce", "ram", "ramplus_tl", "passthrough"}
UNWEIGHTED |= {"iso_c", "tsvm"}
DELTA = 0.001
"""How far the benchmark's models are from each other: what nearswap's t is measured by."""

DENSITY = {"density": 0.5}
PER_MODEL: dict[str, dict[str, float]] = {
    "ties": DENSITY,
    "dare_ties": DENSITY,
    "dare_linear": DENSITY,
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
    "breadcrumbs_ties": {"density": 0.9, "gamma": 0.01},
    "della": {"density": 0.5, "epsilon": 0.1},
    "della_linear": {"density": 0.5, "epsilon": 0.1},
    "consensus_ties": {"density": 0.2},
}
GLOBAL: dict[str, dict[str, float]] = {
    "slerp": {"t": 0.5},
    "nearswap": {"t": DELTA},
    "sce": {"select_topk": 0.5},
    "karcher": {"max_iter": 10},
    "ota": {"epsilon": 1e-24},
}


def importance_of(model: Path, method: str, dtype: str) -> Path:
    """Return where the importance of a model is: of every weight, or of channels for regmean."""
    kind = "gram" if method == "regmean" else "squares"
    return model.with_name(f"{model.name}-{kind}-{dtype}.safetensors")


def recipe(
    method: str, models: list[Path], dtype: str, turn: int = 0, importance: str = ""
) -> dict[str, Any]:
    """Return a recipe of `method`; each `turn` has other weights or another t, as in a sweep.

    `importance` is the dtype of importance files.
    """
    method = "linear" if method == "average" else method
    based, taken = method not in NO_BASE, models[:2] if method in PAIR else models
    if method == "nuslerp":  # of two models, beside a base if there is one more
        based, taken = len(models) > 2, models[:3]
    if method == "passthrough":
        taken = models[:1]
    listed: list[dict[str, Any]] = []
    for number, path in enumerate(taken[1:] if based else taken):
        values = dict(PER_MODEL.get(method, {}))
        if method not in UNWEIGHTED:
            values["weight"] = 1.0 + turn * number / 8
        listed.append({"model": str(path), "parameters": values})
        if method in BY_IMPORTANCE:
            listed[-1]["importance"] = str(importance_of(path, method, importance))
    parameters = dict(GLOBAL.get(method, {}))
    if "t" in parameters:
        parameters["t"] /= 1 + turn
    document: dict[str, Any] = {"merge_method": method, "models": listed, "dtype": dtype}
    if based:
        document["base_model"] = str(models[0])
    if parameters:
        document["parameters"] = parameters
    return document
