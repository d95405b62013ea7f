"""The digest of the code that the numbers of a merge depend on: this worker's parts, and torch.

Work that other code began may have other roundings, so it is not continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # since Python 3.11

PARTS = (
    "adapters",
    "algorithms",
    "checkpoint",
    "conversion",
    "dtypes.py",
    "engine",
    "method.py",
    "methods",
    "planning",
    "tensors",
    "tokenizer",
)
"""Files and packages of this worker that decide which numbers are read and what is computed."""


@cache
def code_digest() -> str:
    """Return the digest of PARTS, the same from a folder and from a zip, and of torch's version."""
    digest = hashlib.sha256()
    top = resources.files(__package__.partition(".")[0])
    for part in PARTS:
        for name, raw in _sources(top / part, part):
            digest.update(f"{name} {len(raw)}\n".encode() + raw)
    with suppress(metadata.PackageNotFoundError):
        digest.update(metadata.version("torch").encode())
    return digest.hexdigest()


def _sources(place: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of a file, or of all in a package."""
    if place.is_file():
        yield name, place.read_bytes()
        return
    for inner in sorted(place.iterdir(), key=lambda entry: entry.name):
        if inner.is_dir() or inner.name.endswith((".py", ".yml")):
            yield from _sources(inner, f"{name}/{inner.name}")
