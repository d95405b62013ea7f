"""The worker as a payload: its files → one zip → bz2 → base64. Nodes need no installed worker.

The node runs the zip, and its SHA-256 names the build. Members are stored, with fixed dates and
modes, so that every checkout makes the same bytes and bz2 compresses all members together. bz2 is
in the standard library: the node needs no program for it (templates/_worker.sh.j2 unpacks it).
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

CHUNK_BYTES = 96 * 1024
"""Base64 in one argument of a program, which Linux limits to 128 KiB."""
SUFFIXES = (".py", ".html", ".json", ".yml")
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
        """Base64 in lines of 76 characters."""
        return base64.encodebytes(self.data).decode().rstrip("\n")

    @property
    def chunks(self) -> list[str]:
        """Pieces of the base64 text, each short enough for an argument of a program."""
        encoded = self.encoded
        return [encoded[i : i + CHUNK_BYTES] for i in range(0, len(encoded), CHUNK_BYTES)] or [""]


@dataclass(frozen=True)
class Payload:
    """A packed worker: `archive` is the zip that runs, `packed` its compressed form in a job."""

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
    """Pack the whole worker that is installed here, or the one in another folder."""
    archive = _zipped(package or Path(merge_worker.__file__).parent)
    return Payload(archive, bz2.compress(archive, 9), merge_worker.__version__)


def _zipped(package: Path) -> bytes:
    """Zip a package so that `python FILE` runs it: its entry is at the top too."""
    inside = {path.relative_to(package): path for path in package.rglob("*")}
    members = sorted(
        (f"{package.name}/{name.as_posix()}", path)
        for name, path in inside.items()
        if path.suffix in SUFFIXES and not {"__pycache__", "tests"} & set(name.parts)
    )
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in [(ENTRY, package / ENTRY), *members]:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            archive.writestr(info, path.read_bytes())
    return target.getvalue()
