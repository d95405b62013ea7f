"""The worker as bytes: its sources → one text → bz2 → base64, and on the node a zip that runs.

The whole worker for `merge-launch payload`; for a job only what its merge can come to run
(`carried`), bare of what the node does not read (`squeeze`). The Python that runs the worker makes
the zip (templates/_worker.sh.j2), with the same bytes everywhere: members are stored, not deflated,
so that it does not depend on a zlib. SHA-256 of the zip is the name of this build.

As base64, gzip made 112 KB of a worker, xz 94 and bz2 89; the places and checksums of a zip would
be 4 % more. bz2 is in the standard library, so the node needs no program for it.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import worker

from . import bare, carried

LINE_COLUMNS = 76
BEGIN = "\f"
"""Stands before the name of each source."""
HELP = r', (?:description|help|metavar)=f?"[^"\\\n]*"(?=[,)]|\n *\))'
CHUNK_BYTES = 96 * 1024
"""Of base64. One argument of a program holds 128 KiB on Linux."""


@dataclass(frozen=True)
class Payload:
    """`archive` is the zip that runs, `packed` is what travels."""

    archive: bytes
    packed: bytes
    version: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.archive).hexdigest()

    @property
    def packed_digest(self) -> str:
        return hashlib.sha256(self.packed).hexdigest()

    @property
    def encoded(self) -> str:
        return base64.b64encode(self.packed).decode()

    def wrapped(self) -> str:
        return base64_lines(self.packed)


def base64_lines(data: bytes) -> str:
    encoded = base64.b64encode(data).decode()
    starts = range(0, len(encoded), LINE_COLUMNS)
    return "\n".join(encoded[i : i + LINE_COLUMNS] for i in starts)


def base64_chunks(data: bytes) -> list[str]:
    """As texts that make the whole when they are joined, each an argument of a program."""
    encoded = base64.b64encode(data).decode()
    return [encoded[i : i + CHUNK_BYTES] for i in range(0, len(encoded), CHUNK_BYTES)] or [""]


def build(
    package: Path | None = None,
    methods: frozenset[str] | None = None,
    commands: tuple[str, ...] = (),
    features: frozenset[str] = frozenset(),
) -> Payload:
    """The worker that is installed here, or that of another folder; whole, or for some methods,
    features, and commands beside the merge."""
    members = _members(package or Path(worker.__file__).parent, methods, commands, features)
    text = "".join(f"{BEGIN}{name}\n{text}" for name, text in members.items())
    return Payload(_zipped(members), bz2.compress(text.encode(), 9), worker.__version__)


def methods_of(recipe: bytes) -> frozenset[str]:
    """The methods that a recipe names, at any depth of any of its documents."""
    import yaml

    found: set[str] = set()
    waiting = list(yaml.safe_load_all(recipe.decode("utf-8-sig")))
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen and isinstance(value, dict | list):
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
            if isinstance(value, dict) and isinstance(value.get("merge_method"), str):
                found.add(value["merge_method"].lower())
    return frozenset(found)


def sources_digest(package: Path) -> str:
    """SHA-256 over all sources: the same for every job of one worker, whatever it carries."""
    digest = hashlib.sha256()
    for name, path in carried.everything(package).items():
        text = path.read_text(encoding="utf-8").encode()
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def _members(
    package: Path,
    methods: frozenset[str] | None,
    commands: tuple[str, ...],
    features: frozenset[str],
) -> dict[str, str]:
    """Bare sources by their names in the zip, in its order."""
    if methods is None:
        found = carried.everything(package)
    else:
        found = carried.needed(package, methods, commands, features)
    texts = {
        f"worker/{name}": bare.of(name, path.read_text(encoding="utf-8")).text
        for name, path in found.items()
    }
    if methods is not None:
        # Nobody asks a job what its options mean.
        texts = {name: re.sub(HELP, "", text) for name, text in texts.items()}
    texts["__main__.py"] = texts[f"worker/{carried.ENTRY}"]
    texts["worker/__init__.py"] += f'__sources__ = "{sources_digest(package)}"\n'
    return dict(sorted(texts.items()))


def _zipped(members: Mapping[str, str]) -> bytes:
    """As the node does it: what `python FILE` runs."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            archive.writestr(info, text.encode())
    return target.getvalue()
