"""Parameter settings of a recipe: scalar, gradient, or a list of filters; and their evaluation.

Semantics of mergekit: a gradient is interpolated over the layers of its slice, a filter is a plain
substring of the tensor's name, and the innermost scope with an answer wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Scalar = float | int | bool | str


@dataclass(frozen=True)
class Conditional:
    """`{filter: substring, value: scalar or gradient}`; no filter, or `*`, matches every name."""

    filter: str | None
    value: Scalar | tuple[Scalar, ...]

    def matches(self, name: str) -> bool:
        return self.filter is None or self.filter == "*" or self.filter in name


Setting = Scalar | tuple[Scalar, ...] | tuple[Conditional, ...]


class Given(NamedTuple):
    """A setting and the place in the recipe where it stands."""

    setting: Setting
    place: str


Parameters = Mapping[str, Given]


def parse_setting(value: object) -> Setting:
    """Parse a YAML value. Raises ValueError that says what is allowed."""
    if isinstance(value, dict):
        return (_conditional(value),)
    if isinstance(value, list):
        if any(isinstance(item, dict) for item in value):
            if not all(isinstance(item, dict) for item in value):
                raise ValueError("mixes filters and plain values; give the plain one as {value: …}")
            return tuple(_conditional(item) for item in value)
        if not value:
            raise ValueError("an empty list; give a number, or a gradient of several")
        return tuple(_scalar(item) for item in value)
    return _scalar(value)


def evaluate(setting: Setting, name: str, t: float) -> Scalar | None:
    """Return the value for the tensor `name` at depth `t` in [0, 1]; None if no filter matches."""
    if not isinstance(setting, tuple):
        return setting
    gradient = [item for item in setting if not isinstance(item, Conditional)]
    if gradient:
        return _gradient(gradient, t)
    for item in setting:
        if isinstance(item, Conditional) and item.matches(name):
            return evaluate(item.value, name, t)
    return None


class Value(NamedTuple):
    """The value of a parameter for one tensor, and where it was given."""

    value: Scalar
    place: str


def look_up(scopes: Iterable[Parameters], parameter: str, name: str, t: float) -> Value | None:
    """Return the value from the first scope that has one; `scopes` begin with the innermost."""
    for scope in scopes:
        given = scope.get(parameter)
        if given is not None:
            value = evaluate(given.setting, name, t)
            if value is not None:
                return Value(value, given.place)
    return None


def scalars(setting: Setting) -> Iterator[Scalar]:
    """Yield every plain value of a setting."""
    for item in setting if isinstance(setting, tuple) else (setting,):
        if isinstance(item, Conditional):
            yield from scalars(item.value)
        else:
            yield item


def convert(value: Scalar, kind: type) -> Scalar:
    """Return `value` as the parameter's type. Raises ValueError naming the type expected.

    YAML reads `1e-5` as text and mergekit's recipes use 0 and 1 for truth: both are understood.
    """
    if kind is bool:
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        words = {"true": True, "yes": True, "false": False, "no": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        raise ValueError(f"{value!r} is neither true nor false")
    if kind is str:
        return str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r:.40} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    if kind is int:
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number")
        return int(number)
    return number


def _gradient(values: list[Scalar], t: float) -> Scalar:
    try:
        numbers = [float(value) for value in values if not isinstance(value, bool)]
    except (ValueError, OverflowError):
        numbers = []
    position = t * (len(values) - 1)
    if len(numbers) < len(values):  # booleans and words step
        return values[int(position)]
    low = int(position)
    high = min(len(numbers) - 1, low + 1)
    fraction = position - low
    return (1 - fraction) * numbers[low] + fraction * numbers[high]


def _conditional(value: dict[object, object]) -> Conditional:
    if "value" not in value or not value.keys() <= {"filter", "value"}:
        raise ValueError("a filter is {filter: part of a tensor name, value: …}")
    inner = value["value"]
    items = inner if isinstance(inner, list) else [inner]
    if any(isinstance(item, dict) for item in items):
        raise ValueError("filters nest only one level")
    plain = tuple(map(_scalar, inner)) if isinstance(inner, list) else _scalar(inner)
    text = value.get("filter")
    return Conditional(None if text is None else str(text), plain)


def _scalar(value: object) -> Scalar:
    if isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"expected a number, truth value, list or filter, got {value!r}")
