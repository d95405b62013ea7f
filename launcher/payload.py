"""The worker as bytes: its sources → a zip with the same bytes everywhere → gzip → base64.

Members are stored, not deflated, so that the zip does not depend on a zlib, and bare of docstrings
and comments, which the node does not read. SHA-256 of the zip is the name of this build. gzip and
base64 are only the way it travels.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import worker

from .errors import UsageError

CHUNK_BYTES = 96 * 1024
"""One argument of a program holds 128 KiB on Linux; a payload in arguments may be several."""
BUDGET_BYTES = 2 * CHUNK_BYTES
"""Encoded, in all: arguments hold 1 MiB with room to spare, job scripts as much at every site."""
LINE_COLUMNS = 76


@dataclass(frozen=True)
class Payload:
    """`archive` is the zip that runs; `encoded` is base64 of it gzipped, without line ends."""

    archive: bytes
    digest: str
    encoded: str
    version: str

    def wrapped(self) -> str:
        return "\n".join(self.chunks(LINE_COLUMNS))

    def chunks(self, limit: int = CHUNK_BYTES) -> list[str]:
        return [self.encoded[i : i + limit] for i in range(0, len(self.encoded), limit)]


def build(package: Path | None = None, budget: int = BUDGET_BYTES) -> Payload:
    """The payload of the worker that is installed here, or of another folder of sources."""
    archive = pack(package or Path(worker.__file__).parent)
    gzipper = zlib.compressobj(level=9, wbits=31)
    encoded = base64.b64encode(gzipper.compress(archive) + gzipper.flush()).decode()
    if len(encoded) > budget:
        raise UsageError(
            f"the worker is {len(encoded)} bytes encoded, more than the {budget} that a job may "
            f"carry; this build of merge-launch cannot be shipped"
        )
    return Payload(archive, hashlib.sha256(archive).hexdigest(), encoded, worker.__version__)


def pack(package: Path) -> bytes:
    """The *.py files of a package as a zip that `python FILE` runs."""
    members = {
        f"worker/{path.relative_to(package).as_posix()}": path
        for path in package.rglob("*.py")
        if not {"__pycache__", "tests"} & set(path.relative_to(package).parts)
    }
    members["__main__.py"] = package / "__main__.py"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            text = members[name].read_text(encoding="utf-8")
            # Docstrings of methods are what `merge-worker methods` prints.
            is_method = re.search(r"/methods/[^_][^/]*$", name)
            archive.writestr(info, (text if is_method else without_words(text)).encode())
    return target.getvalue()


def without_words(text: str) -> str:
    """Empty lines for docstrings and comments: a fifth less, and tracebacks name the same lines."""
    lines = text.split("\n")
    within_text: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            within_text.update(range(node.lineno, node.end_lineno or 0))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _empty_docstring(node, lines)
    for number, line in enumerate(lines):
        if line.lstrip().startswith("#") and number not in within_text:
            lines[number] = ""
    return "\n".join(lines)


def _empty_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> None:
    # A body that is nothing but a docstring needs it.
    if ast.get_docstring(node, clean=False) is None or len(node.body) == 1:
        return
    first = node.body[0]
    start, end = first.lineno - 1, first.end_lineno or first.lineno
    alone = not lines[start][: first.col_offset].strip() and lines[end - 1].endswith(('"', "'"))
    if alone:
        lines[start:end] = [""] * (end - start)
