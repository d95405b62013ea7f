"""A place in a recipe, such as `models.1.parameters.weight`, and putting a value there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from worker.errors import printable

from .errors import UsageError

EVERY = "*"
PART = r'"([^"]+)"|([^."\[\]]+)'


class PathFault(ValueError):
    """A recipe without such a place."""


@dataclass(frozen=True)
class Place:
    """`parts` are keys, positions from 0, and '*' for every entry of a list."""

    text: str
    parts: tuple[str, ...]

    @classmethod
    def read(cls, text: str, where: str) -> Place:
        """`a.1.b`, `a[1].b` or `a."b.c"`. UsageError."""
        plain = re.sub(r"\[(\d+|\*)\]", r".\1", text)
        if not re.fullmatch(rf"({PART})(\.({PART}))*", plain):
            raise UsageError(
                f"{where}: '{printable(text)}' is no path; give one such as "
                f'models.1.parameters.weight, with "quotes" around a key that has a dot'
            )
        return cls(text, tuple(quoted or bare for quoted, bare in re.findall(PART, plain)))

    def is_of(self, text: str) -> bool:
        """Whether a sentence of the worker begins with this place: `models[1].parameters.x: …`."""
        named = re.sub(r"\[(\d+)\]", r".\1", text.partition(": ")[0]).split(".")
        return len(named) == len(self.parts) and all(
            own in (EVERY, other) for own, other in zip(self.parts, named, strict=True)
        )


def put(recipe: Any, place: Place, value: Any) -> None:
    """Set a value in a recipe of plain values; mappings on the way that are missing are made."""
    _put(recipe, place.parts, value, place.text)


def _put(node: Any, parts: tuple[str, ...], value: Any, text: str) -> None:
    part, rest = parts[0], parts[1:]
    if isinstance(node, list):
        for position in _positions(node, part, text):
            if rest:
                _put(node[position], rest, value, text)
            else:
                node[position] = value
    elif isinstance(node, dict):
        if not rest:
            node[part] = value
            return
        if node.get(part) is None:
            if rest[0].isdecimal() or rest[0] == EVERY:
                raise PathFault(f"{text}: the base recipe has no list '{part}'")
            node[part] = {}
        _put(node[part], rest, value, text)
    else:
        raise PathFault(f"{text}: '{part}' would be within {printable(repr(node))[:40]}")


def _positions(node: list[Any], part: str, text: str) -> range:
    if part == EVERY:
        return range(len(node))
    if not part.isdecimal():
        raise PathFault(f"{text}: '{part}' must be a position of a list (0 to {len(node) - 1})")
    if int(part) >= len(node):
        raise PathFault(f"{text}: {part} is beyond a list of {len(node)} (0 to {len(node) - 1})")
    return range(int(part), int(part) + 1)
