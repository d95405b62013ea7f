"""Documents of one recipe that use each other's results: their order, and which is the last.

A document is used by its name where a model stands; nothing else in a recipe is a reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import UsageError
from ..messages import printable
from .schema import Recipe


def arrange(recipes: Sequence[Recipe]) -> Recipe:
    """Return the document that makes the result, with its stages. Raises UsageError."""
    named: dict[str | None, Recipe] = {recipe.name: recipe for recipe in recipes if recipe.name}
    faults = list(_faults(recipes))
    if faults:
        raise UsageError("\n".join(faults))
    last = _last(recipes, named)
    order: list[Recipe] = []
    _visit(last, named, [], order)
    order.remove(last)
    warnings = [line for recipe in (*order, last) for line in recipe.warnings]
    warnings += [
        f"{recipe.where}: nothing uses the document '{recipe.name}'; it is not merged"
        for recipe in recipes
        if recipe is not last and recipe not in order
    ]
    return replace(last, stages=tuple(order), warnings=tuple(warnings))


def _faults(recipes: Sequence[Recipe]) -> Iterator[str]:
    names = [recipe.name for recipe in recipes if recipe.name]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"{recipes[0].where}: {names.count(name)} documents have the name '{name}'"
    nameless = len(recipes) - len(names)
    if nameless > 1:
        yield (
            f"{recipes[0].where}: {nameless} documents have no name; only the one that makes the "
            f"result may have none"
        )


def _last(recipes: Sequence[Recipe], named: Mapping[str | None, Recipe]) -> Recipe:
    """Return the document without a name, else the only one that no other uses."""
    for recipe in recipes:
        if not recipe.name:
            return recipe
    used = {name for recipe in recipes for name in _uses(recipe, named)}
    unused = [recipe for recipe in recipes if recipe.name not in used]
    if len(unused) != 1:
        listed = ", ".join(printable(str(recipe.name)) for recipe in unused) or "none"
        raise UsageError(
            f"{recipes[0].where}: which document makes the result? Leave its name away "
            f"(not used by another: {listed})"
        )
    return unused[0]


def _uses(recipe: Recipe, named: Mapping[str | None, Recipe]) -> list[str]:
    """Return the names of the documents whose results a recipe takes as models."""
    return [ref.path for ref in recipe.all_refs() if ref.path in named]


def _visit(
    recipe: Recipe, named: Mapping[str | None, Recipe], path: list[Recipe], order: list[Recipe]
) -> None:
    if recipe in order:
        return
    if recipe in path:
        names = [printable(str(r.name)) for r in path[path.index(recipe) :]]
        raise UsageError(
            f"{recipe.where}: documents need each other: {' → '.join([*names, names[0]])}"
        )
    for name in _uses(recipe, named):
        _visit(named[name], named, [*path, recipe], order)
    order.append(recipe)
