"""What of a finished merge leaves this machine: its files, none of which tells a path of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError
from .manifest import read_manifest
from .output_files import MANIFEST, RECIPE


def published(out: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Name and content of every file of a finished merge, the manifest last. InputError.

    The recipe has the names that the card has for its models, in place of folders.
    """
    value = read_manifest(out)
    if not value or not isinstance(value.get("outputs"), list):
        raise InputError(f"{out}: no {MANIFEST}; this is no finished merge")
    recipe = str(value["recipe"]["text"]).encode()
    for entry in value["outputs"]:
        if entry["file"] == RECIPE:
            entry["bytes"] = len(recipe)
        yield entry["file"], recipe if entry["file"] == RECIPE else out / entry["file"]
    yield MANIFEST, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
