"""Places in a recipe: paths such as `models.1.parameters.weight`, and the values put there.

Sweeps and searches vary a recipe so. Relative paths of files start at the current folder, as in a
recipe. Models are not opened.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..messages import printable
from .yaml_document import import_yaml, read_documents

EVERY = "*"
UNINFORMATIVE = ("parameters",)
"""Parts of a path that labels leave out."""
PART = r'"([^"]+)"|([^."\[\]]+)'


class PlaceError(ValueError):
    """A place that a recipe does not have."""


@dataclass(frozen=True)
class Place:
    """A place in a recipe. `parts` are keys, positions from 0, and '*' for every list entry."""

    text: str
    parts: tuple[str, ...]

    @classmethod
    def read(cls, text: str, where: str) -> Place:
        """Parse `a.1.b`, `a[1].b` or `a."b.c"`. Raises UsageError."""
        plain = re.sub(r"\[(\d+|\*)\]", r".\1", text)
        if not re.fullmatch(rf"({PART})(\.({PART}))*", plain):
            raise UsageError(
                f"{where}: '{printable(text)}' is not a path; give one such as "
                f'models.1.parameters.weight, with "quotes" around a key that has a dot'
            )
        return cls(text, tuple(quoted or bare for quoted, bare in re.findall(PART, plain)))

    def begins(self, message: str) -> bool:
        """Whether a message of the worker is about this place: `models[1].parameters.x: …`."""
        named = re.sub(r"\[(\d+)\]", r".\1", message.partition(": ")[0]).split(".")
        return len(named) == len(self.parts) and all(
            own in (EVERY, other) for own, other in zip(self.parts, named, strict=True)
        )


def put(node: Any, place: Place, value: Any) -> None:
    """Set a value in a recipe of plain values; missing mappings on the way are created."""
    part, *rest = place.parts
    keys: Iterable[Any] = [part]
    if isinstance(node, list):
        keys = _positions(node, part, place.text)
    elif not isinstance(node, dict):
        raise PlaceError(f"{place.text}: '{part}' would be within {printable(repr(node))[:40]}")
    elif rest and node.get(part) is None:
        if rest[0].isdecimal() or rest[0] == EVERY:
            raise PlaceError(f"{place.text}: the base recipe has no list '{part}'")
        node[part] = {}
    for key in keys:
        if rest:
            put(node[key], Place(place.text, tuple(rest)), value)
        else:
            node[key] = value


def _positions(node: list[Any], part: str, text: str) -> range:
    if part == EVERY:
        return range(len(node))
    if not part.isdecimal():
        raise PlaceError(f"{text}: '{part}' must be a position of a list (0 to {len(node) - 1})")
    if int(part) >= len(node):
        raise PlaceError(f"{text}: {part} is beyond a list of {len(node)} (0 to {len(node) - 1})")
    return range(int(part), int(part) + 1)


def base_recipe(given: Any, path: str, folder: str) -> Any:
    """Return the base recipe, given as a path or as itself, as plain values. Raises UsageError."""
    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        raise UsageError(f"{path}: 'recipe' must be the path of a recipe, or the recipe itself")
    try:
        text = (Path(folder) / Path(given).expanduser()).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: recipe {printable(given)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{printable(given)}: not UTF-8 text; is it a recipe?") from None
    documents = read_documents(text, given)
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise UsageError(f"{given}: the base recipe must be one document with one mapping")
    return documents[0].value


def recipe_text(base: Any, values: Mapping[Place, Any]) -> str:
    """Return the text of a recipe with values put at places. Raises PlaceError."""
    recipe = copy.deepcopy(base)
    for place, value in values.items():
        put(recipe, place, copy.deepcopy(value))
    return written(recipe)


def written(recipe: Any) -> str:
    """Return a recipe as YAML if that reads back unchanged, else as JSON, which always does."""
    yaml = import_yaml("the recipe")
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    unchanged = repr(read_documents(text, "recipe")[0].value) == repr(recipe)
    return text if unchanged else json.dumps(recipe, indent=1, default=str) + "\n"


def labels(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the shortest ends of paths that are all different."""
    short = [tuple(p for p in path if p not in UNINFORMATIVE) or path for path in paths]
    if len(set(short)) < len(short):
        short = list(paths)
    ends = []
    for path in short:
        length = 1
        while length < len(path) and (
            sum(other[-length:] == path[-length:] for other in short) > 1
            or not path[-length][0].isalpha()
        ):
            length += 1
        ends.append(".".join(path[-length:]))
    return ends
