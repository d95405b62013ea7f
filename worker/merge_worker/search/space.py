"""The values that a search varies: ranges, choices, gradients, and weights that share a sum.

A dimension stands at one place of the recipe. It has one or several coordinates, which are what the
study stores, and turns them into the value that is written into the recipe and back.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..recipe.places import Place

DIGITS = 4
"""Digits of a value in a recipe: finer steps are lost in the noise of any score."""

Coordinate = float | int | str | bool | None
Coordinates = dict[str, Coordinate]


@dataclass(frozen=True)
class Interval:
    """The values of one coordinate: numbers from `low` to `high`."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Options:
    """The values of one coordinate: one of several, none nearer to another than the rest."""

    options: tuple[Coordinate, ...]


Axis = Interval | Options


@dataclass(frozen=True)
class Dimension(ABC):
    """A place of the recipe and the values that it can have."""

    place: Place

    @property
    @abstractmethod
    def axes(self) -> dict[str, Axis]:
        """The coordinates by name; names are those of the place, with `#1` and so on if several."""

    @abstractmethod
    def put(self, coordinates: Mapping[str, Coordinate]) -> dict[Place, Any]:
        """Return the values to write into the recipe, rounded as they are written."""

    @abstractmethod
    def coordinates(self, value: Any) -> Coordinates:
        """Return the coordinates of a value as the user writes it. Raises ValueError."""

    def _names(self, count: int) -> list[str]:
        text = self.place.text
        return [text] if count == 1 else [f"{text}#{number}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class Range(Dimension):
    """Numbers from `low` to `high`; with `points`, a gradient of that many over the layers."""

    interval: Interval
    points: int | None = None

    @property
    def axes(self) -> dict[str, Axis]:
        return dict.fromkeys(self._names(self.points or 1), self.interval)

    def put(self, coordinates: Mapping[str, Coordinate]) -> dict[Place, Any]:
        values = [self._written(coordinates[name]) for name in self.axes]
        return {self.place: values[0] if self.points is None else values}

    def _written(self, coordinate: Coordinate) -> float | int:
        number = float(coordinate)  # type: ignore[arg-type]
        interval = self.interval
        if interval.integer:
            return round(number)
        number = round(number, 10) if interval.step else float(f"{number:.{DIGITS}g}")
        return min(max(number, interval.low), interval.high)

    def coordinates(self, value: Any) -> Coordinates:
        names = list(self.axes)
        values = value if isinstance(value, list) else [value] * len(names)
        if len(values) != len(names):
            raise ValueError(f"expected {len(names)} numbers, got {len(values)}")
        return {n: self._checked(v) for n, v in zip(names, values, strict=True)}

    def _checked(self, value: Any) -> float | int:
        interval = self.interval
        if not is_number(value) or not interval.low <= value <= interval.high:
            raise ValueError(
                f"expected a number from {interval.low:g} to {interval.high:g}, got {shown(value)}"
            )
        if interval.step is None:
            return float(value)
        steps = round((value - interval.low) / interval.step)
        nearest: float = interval.low + steps * interval.step
        if abs(nearest - value) > 1e-9 * max(1.0, abs(value)):
            raise ValueError(f"{value:g} is not {interval.low:g} plus steps of {interval.step:g}")
        return round(nearest) if interval.integer else nearest


@dataclass(frozen=True)
class Choice(Dimension):
    """One of several values of any kind."""

    choices: tuple[Any, ...]

    @property
    def axes(self) -> dict[str, Axis]:
        return {self.place.text: Options(tuple(_label(value) for value in self.choices))}

    def put(self, coordinates: Mapping[str, Coordinate]) -> dict[Place, Any]:
        wanted = coordinates[self.place.text]
        by_label = ((_label(value), value) for value in self.choices)
        return {self.place: next(value for label, value in by_label if _same(label, wanted))}

    def coordinates(self, value: Any) -> Coordinates:
        label = _label(value)
        if not any(_same(label, _label(choice)) for choice in self.choices):
            known = ", ".join(shown(choice) for choice in self.choices)
            raise ValueError(f"expected one of {known}, got {shown(value)}")
        return {self.place.text: label}


@dataclass(frozen=True)
class Share(Dimension):
    """Weights that are not negative and add up to `total`, one for each of several places.

    A uniform draw of the coordinates u, each in [0, 1], is uniform over all such weights: of n
    weights the first takes 1 − u^(1/(n−1)) of the total, the second that part of the rest with n−2,
    and so on (stick breaking).
    """

    total: float
    places: tuple[Place, ...]

    @property
    def axes(self) -> dict[str, Axis]:
        names = [f"{self.place.text}#{number}" for number in range(1, len(self.places))]
        return dict.fromkeys(names, Interval(0.0, 1.0))

    def put(self, coordinates: Mapping[str, Coordinate]) -> dict[Place, Any]:
        rest, weights = 1.0, []
        for name, left in zip(self.axes, range(len(self.places) - 1, 0, -1), strict=True):
            part = rest * (1.0 - float(coordinates[name]) ** (1.0 / left))  # type: ignore[arg-type]
            weights.append(round(part * self.total, DIGITS))
            rest -= part
        weights.append(max(0.0, round(self.total - sum(weights), DIGITS)))
        return dict(zip(self.places, weights, strict=True))

    def coordinates(self, value: Any) -> Coordinates:
        count = len(self.places)
        if not isinstance(value, list) or len(value) != count or not all(map(is_number, value)):
            raise ValueError(f"expected a list of {count} weights, got {shown(value)}")
        if min(value) < 0 or not math.isclose(sum(value), self.total, rel_tol=1e-3):
            raise ValueError(f"expected weights of at least 0 that add up to {self.total:g}")
        rest, found = 1.0, []
        for weight, left in zip(value[:-1], range(count - 1, 0, -1), strict=True):
            part = min(weight / sum(value), rest)
            found.append(max(0.0, 1.0 - part / rest) ** left if rest > 1e-12 else 1.0)
            rest -= part
        return dict(zip(self.axes, found, strict=True))


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and not true or false."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)


def shown(value: Any) -> str:
    """Return a value as it is shown in a message, in at most 60 characters."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def written(
    dimensions: Sequence[Dimension], coordinates: Mapping[str, Coordinate]
) -> dict[Place, Any]:
    """Return the values of all dimensions, by their places in the recipe."""
    values: dict[Place, Any] = {}
    for dimension in dimensions:
        values |= dimension.put(coordinates)
    return values


def _label(value: Any) -> Coordinate:
    """Return a value as the study can store it: lists and mappings as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _same(one: Coordinate, other: Coordinate) -> bool:
    """Whether two labels are the same; to Python, 1 and true are equal."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
