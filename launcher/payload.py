"""The worker as bytes: its sources → a zip with the same bytes everywhere → bz2 → base64.

The whole worker for `merge-launch payload`; for a job only what its merge can come to run
(`carried`), bare of what the node does not read (`squeeze`). Members are stored, not deflated, so
that the zip does not depend on a zlib. SHA-256 of the zip is the name of this build.

bz2 and base64 are only the way it travels. Of the same zip, as base64, gzip made 112 KB, xz 94 and
bz2 89. The Python that runs the worker unpacks it: bz2 is in the standard library, so the node
needs no program for it.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import worker

from . import carried
from .squeeze import without_words

LINE_COLUMNS = 76
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
    archive = pack(package or Path(worker.__file__).parent, methods, commands, features)
    return Payload(archive, bz2.compress(archive, 9), worker.__version__)


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


def pack(
    package: Path,
    methods: frozenset[str] | None = None,
    commands: tuple[str, ...] = (),
    features: frozenset[str] = frozenset(),
) -> bytes:
    """The *.py files of a package as a zip that `python FILE` runs."""
    if methods is None:
        found = carried.everything(package)
    else:
        found = carried.needed(package, methods, commands, features)
    members = {f"worker/{name}": path for name, path in found.items()}
    members["__main__.py"] = package / carried.ENTRY
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            text = without_words(members[name].read_text(encoding="utf-8"))
            if name == "worker/__init__.py":
                text += f'__sources__ = "{sources_digest(package)}"\n'
            archive.writestr(info, text.encode())
    return target.getvalue()
