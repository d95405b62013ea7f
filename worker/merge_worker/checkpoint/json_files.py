"""JSON files of a model folder, read with their faults in one line: config, index of shards."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError
from .header import MAX_HEADER_BYTES


def is_inside(name: object) -> bool:
    """Return whether a name that stands in a file is that of a file beside it or below it.

    What files name is read, replaced, removed and uploaded: no name may lead out of a folder.
    """
    if not isinstance(name, str) or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half of a character, which JSON can escape
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. InputError names the file if it cannot be read."""
    try:
        return load_json(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def load_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises OSError, and InputError if it is not JSON."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise InputError(f"{path}: larger than {MAX_HEADER_BYTES} bytes; is this a model?")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON; is it complete?") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of which little is needed; empty if there is none."""
    try:
        value = read_json(path)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def weight_map(index: Path) -> dict[str, str]:
    """Return the shard of every tensor in an index. Raises InputError if it is damaged."""
    value = read_json(index)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index}: no 'weight_map'; the index is damaged")
    if not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"{index}: 'weight_map' has a shard that is not a file name")
    return places
