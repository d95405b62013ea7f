"""The worker as bytes: its files → one zip → bz2 → base64, so that a node needs none installed.

The zip is what runs, and its SHA-256 names the build. Its members are stored, with fixed dates and
modes, so every checkout makes the same bytes; bz2 sees all of them at once, and is in the standard
library, so the node needs no program for it (templates/_worker.sh.j2 unpacks it).
"""

from __future__ import annotations

import base64
import bz2
import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import merge_worker

LINE_COLUMNS = 76
CHUNK_BYTES = 96 * 1024
"""Of base64. One argument of a program holds 128 KiB on Linux."""
SUFFIXES = (".py", ".html")
ENTRY = "__main__.py"


@dataclass(frozen=True)
class EmbeddedFile:
    """A file that a job carries in its own text, as base64."""

    name: str
    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def encoded(self) -> str:
        return base64.b64encode(self.data).decode()

    @property
    def lines(self) -> str:
        encoded = self.encoded
        starts = range(0, len(encoded), LINE_COLUMNS)
        return "\n".join(encoded[i : i + LINE_COLUMNS] for i in starts)

    @property
    def chunks(self) -> list[str]:
        """Texts that make the whole when they are joined, each an argument of a program."""
        encoded = self.encoded
        return [encoded[i : i + CHUNK_BYTES] for i in range(0, len(encoded), CHUNK_BYTES)] or [""]


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
    def embedded(self) -> EmbeddedFile:
        return EmbeddedFile("merge-worker.pyz.bz2", self.packed)


@functools.cache
def build(package: Path | None = None) -> Payload:
    """The whole worker that is installed here, or that of another folder."""
    archive = _zipped(package or Path(merge_worker.__file__).parent)
    return Payload(archive, bz2.compress(archive, 9), merge_worker.__version__)


def _zipped(package: Path) -> bytes:
    """What `python FILE` runs: the package, and its entry once more at the top."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in [(ENTRY, package / ENTRY), *_members(package)]:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            archive.writestr(info, path.read_bytes())
    return target.getvalue()


def _members(package: Path) -> list[tuple[str, Path]]:
    """Files of the package by their names in the zip, in an order of their own."""
    inside = ((path.relative_to(package), path) for path in package.rglob("*"))
    return sorted(
        (f"{package.name}/{name.as_posix()}", path)
        for name, path in inside
        if path.suffix in SUFFIXES and not {"__pycache__", "tests"} & set(name.parts)
    )
