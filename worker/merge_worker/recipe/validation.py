"""Checks a recipe against its method: base, number of models, duplicates. Reads no files."""

from __future__ import annotations

from collections.abc import Iterator

from ..messages import counted
from ..method import BaseRole, Method
from .schema import ModelRef, Recipe, Slice, plays_base
from .yaml_document import COMMAND


def broken_rules(recipe: Recipe, method: Method) -> Iterator[str]:
    """One line for every rule that the recipe breaks."""
    parts = [part for module in recipe.modules for part in module.slices if part.sources]
    # One source alone is taken as it is, whatever the method.
    is_merged = [part.length is None or len(part.sources) > 1 for part in parts]
    bases = [part.base or recipe.base for part in parts]
    lacks_base = any(merged and not base for merged, base in zip(is_merged, bases, strict=True))
    if method.base is BaseRole.REQUIRED and lacks_base:
        key = "--base-model MODEL" if recipe.where == COMMAND else "'base_model: …'"
        yield (
            f"{recipe.where}: {method.name} needs a base: add {key} "
            f"(the model that the others were trained from)"
        )
        return
    for part, base, merged in zip(parts, bases, is_merged, strict=True):
        yield from _twice(part)
        yield from _lengths(part)
        if merged:
            yield from _base_listed(part, base, method)
            yield from _count(part, base, method)


def _twice(part: Slice) -> Iterator[str]:
    keys = [(source.model, source.layers) for source in part.sources]
    for number, source in enumerate(part.sources):
        if keys[number] in keys[:number]:
            layers = f" with layers {list(source.layers)}" if source.layers else ""
            yield (
                f"{source.place}: model '{source.model}' is listed twice{layers}; "
                f"give one larger weight"
            )


def _lengths(part: Slice) -> Iterator[str]:
    for source in part.sources:
        first, stop = source.layers or (0, 0)
        if source.layers and stop - first != part.length:
            yield (
                f"{source.place}: takes {counted(stop - first, 'layers')}, "
                f"the first source of this slice {part.length}; a slice merges equally many"
            )


def _base_listed(part: Slice, base: ModelRef | None, method: Method) -> Iterator[str]:
    if base is None or not plays_base(method) or part.length is None:
        return
    if not any(source.model == base for source in part.sources):
        yield (
            f"{part.place}: the base '{base}' is not among the sources of this slice; "
            f"{method.name} needs it there, with the layers to compare to"
        )


def _count(part: Slice, base: ModelRef | None, method: Method) -> Iterator[str]:
    count = len(part.sources) - (base is not None and plays_base(method))
    least, most = method.min_models, method.max_models
    if count >= least and (most is None or count <= most):
        return
    if most is None:
        allowed = f"at least {least}"
    else:
        allowed = f"{most}" if most == least else f"{least} to {most}"
    hint = ""
    if any(source.implied for source in part.sources) and not plays_base(method):
        hint = f"; base_model '{base}' is one of them, since {method.name} knows no base"
    yield (
        f"{part.place}: {method.name} merges {allowed} model{'s' * (allowed != '1')}"
        f"{' beside the base' if plays_base(method) else ''}; found {count}{hint}"
    )
