"""Recipes at the ends of a space, parsed before anything is merged, so that faults are found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import UsageError
from ..recipe.places import Place, PlaceError, recipe_text
from ..recipe.schema import Recipe
from .space import Choice, Coordinates, Dimension, Interval, written

MOST_PROBES = 64


def probe(
    base: Any, space: Sequence[Dimension], parse: Callable[[str], Recipe], where: str
) -> tuple[Recipe | None, Recipe, list[str]]:
    """Parse the recipe as it stands, and with the first and last values of the space.

    Returns the recipe as it stands, or None if it is refused; one with values; and warnings.
    Raises UsageError if every recipe of the space is refused, or ignores a value.
    """
    found, faults = [], []
    for coordinates in _corners(space):
        values = written(space, coordinates)
        try:
            found.append((parse(recipe_text(base, values)), values))
        except (UsageError, PlaceError) as error:
            faults.append(str(error))
    if not found:
        raise UsageError("\n".join(_as_recipe(line, where) for line in faults[0].splitlines()))
    ignored = [place for place in found[0][1] if all(_ignores(r, place) for r, _ in found)]
    if ignored:
        texts = (f"{where}: space: {place.text}: the method does not read it" for place in ignored)
        raise UsageError("\n".join(texts))
    warnings = [_as_recipe(line, where) for line in found[0][0].warnings]
    if faults:
        first = _as_recipe(faults[0].splitlines()[0], where)
        warnings.append(f"{first}; some candidates will be refused")
    return _as_it_stands(base, parse), found[0][0], warnings


def _as_it_stands(base: Any, parse: Callable[[str], Recipe]) -> Recipe | None:
    try:
        return parse(recipe_text(base, {}))
    except UsageError:
        return None


def _corners(space: Sequence[Dimension]) -> Iterator[Coordinates]:
    """Yield the least and the greatest numbers of the space, each with all choices."""
    choices = [dimension for dimension in space if isinstance(dimension, Choice)]
    picks: list[tuple[Any, ...]] = list(
        itertools.islice(itertools.product(*(c.choices for c in choices)), MOST_PROBES)
    )
    for end in ("low", "high"):
        numbers: Coordinates = {
            name: getattr(axis, end)
            for dimension in space
            for name, axis in dimension.axes.items()
            if isinstance(axis, Interval)
        }
        for pick in picks:
            chosen: Coordinates = {}
            for choice, value in zip(choices, pick, strict=True):
                chosen |= choice.coordinates(value)
            yield {**numbers, **chosen}


def _ignores(recipe: Recipe, place: Place) -> bool:
    """Whether a warning of the recipe is about a value at this place."""
    return any(place.begins(_without_line(line, recipe.where)) for line in recipe.warnings)


def _without_line(line: str, where: str) -> str:
    rest = line.strip().removeprefix(f"{where}:")
    number, colon, text = rest.partition(":")
    return (text if colon and number.strip().isdecimal() else rest).strip()


def _as_recipe(line: str, where: str) -> str:
    """Return a message of the parser with 'recipe' in place of a line that the user never saw."""
    return f"{where}: recipe: {_without_line(line, where)}"
