"""Output of a program → the JSON objects in it, and their values by path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects that begin at the start of a line."""
    decoder = json.JSONDecoder()
    position = 0
    while (start := re.compile(r"^\s*\{", re.MULTILINE).search(text, position)) is not None:
        at = text.index("{", start.start())
        try:
            value, position = decoder.raw_decode(text, at)
        except ValueError:
            position = at + 1
            continue
        if isinstance(value, dict):
            yield value


def flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, (*path, str(key)))
    elif path:
        yield path, value if isinstance(value, str | int | float | None) else json.dumps(value)


def number(text: str) -> Any:
    try:
        return json.loads(text) if re.fullmatch(r"-?[\d.eE+-]+", text) else text
    except ValueError:
        return text
