"""The model type that a mixture is written as: the one asked for, or the first that fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import InputError, UsageError
from ..messages import nearest, printable
from ..recipe.schema import Mixture, Recipe
from ..structure.moe_config import misfit
from ..structure.moe_targets import NO_TWIN, TARGETS, Target

DEEPSEEK = "deepseek"
"""A target of mergekit whose results need remote code; `glm4_moe` is the nearest that does not."""


def choose_target(
    recipe: Recipe, mixture: Mixture, config: Mapping[str, Any]
) -> tuple[Target, list[str]]:
    """Return the target of a mixture, and notes. Raises UsageError or InputError with reasons."""
    base = str(recipe.base)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(
            f"{base}: no model_type in its config.json, by which the mixture's is chosen"
        )
    if len(mixture.shared) > 1:
        raise UsageError(
            f"{mixture.shared[1].place}: a second shared expert; model types have a place for one"
        )
    targets, notes = _asked(mixture)
    fitting = [target for target in targets if model_type in target.bases]
    reasons: list[tuple[Target, str]] = []
    for target in fitting:
        why = misfit(config, target)
        if why is None and mixture.shared and target.shared is None:
            why = "has no shared expert"
        if why is None:
            return target, notes
        reasons.append((target, why))
    place = mixture.places.get("architecture" if mixture.target else "base_model", recipe.where)
    raise InputError("\n".join(_no_target(place, base, model_type, (targets, reasons))))


def _asked(mixture: Mixture) -> tuple[Sequence[Target], list[str]]:
    """Return the targets that a recipe leaves to choose from, and a note on a changed one."""
    if not mixture.target:
        return TARGETS, []
    matching = [target for target in TARGETS if target.matches(mixture.target)]
    if not matching:
        names = [target.name for target in TARGETS]
        raise UsageError(
            f"{mixture.places['architecture']}: unknown '{printable(mixture.target)[:60]}'"
            f"{nearest(mixture.target.lower(), names)}; one of {', '.join(names)}"
        )
    if DEEPSEEK.startswith(mixture.target.lower()[: len(DEEPSEEK)]):
        return matching, [
            f"architecture: {mixture.target}: written as glm4_moe, since transformers has no class "
            f"for deepseek; routers there take sigmoids in place of a softmax"
        ]
    return matching, []


def _no_target(
    place: str,
    base: str,
    model_type: str,
    found: tuple[Sequence[Target], Sequence[tuple[Target, str]]],
) -> Iterator[str]:
    """Yield the lines that say why no target fits."""
    targets, reasons = found
    twin = f": {NO_TWIN[model_type]}" if model_type in NO_TWIN else ""
    yield (
        f"{place}: no mixture of experts can be made of {printable(base)} "
        f"(model_type {printable(model_type)}){twin}"
    )
    if reasons:
        yield "  " + "; ".join(f"{target.name}: {why}" for target, why in reasons)
    others = [target for target in targets if model_type not in target.bases]
    if others:
        listed = "; ".join(f"{target.name} of {', '.join(target.bases)}" for target in others)
        yield f"  {'others' if reasons else 'mixtures'} are made of these: {listed}"
