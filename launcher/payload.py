"""The worker as bytes: its sources → a zip with the same bytes everywhere → bz2 → base64.

Members are stored, not deflated, so that the zip does not depend on a zlib, and bare of docstrings
and comments, which the node does not read. SHA-256 of the zip is the name of this build.

bz2 and base64 are only the way it travels. Of the same zip, as base64, gzip made 112 KB, xz 94 and
bz2 89. The Python that runs the worker unpacks it: bz2 is in the standard library, so the node
needs no program for it.
"""

from __future__ import annotations

import ast
import base64
import bz2
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import worker

from .errors import UsageError

BUDGET_BYTES = 96 * 1024
"""Encoded. One argument of a program holds 128 KiB on Linux, and in a container it is one."""
LINE_COLUMNS = 76
COMMENT = r"^\s*#.*|  #[^\"']*$"
"""A string that held the sign would end in a quote further on."""


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


def build(package: Path | None = None, budget: int = BUDGET_BYTES) -> Payload:
    """The payload of the worker that is installed here, or of another folder of sources."""
    archive = pack(package or Path(worker.__file__).parent)
    made = Payload(archive, bz2.compress(archive, 9), worker.__version__)
    if len(made.encoded) > budget:
        raise UsageError(
            f"the worker is {len(made.encoded)} bytes encoded, more than the {budget} that a job "
            f"may carry; this build of merge-launch cannot be shipped"
        )
    return made


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
            archive.writestr(info, without_words(text).encode())
    return target.getvalue()


def without_words(text: str) -> str:
    """Empty lines for docstrings and comments: tracebacks still name the lines of the sources."""
    lines = text.split("\n")
    tree = ast.parse(text)
    for suite in _suites(tree):
        _empty_strings(suite, lines)
    within_text: set[int] = set()
    # Most sources hold no such text by now, and a walk over all of them takes half a second.
    if any(mark in "\n".join(lines) for mark in ('"""', "'''", "\\\n")):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
                within_text.update(range(node.lineno - 1, node.end_lineno or 0))
    return "\n".join(
        line if number in within_text else re.sub(COMMENT, "", line)
        for number, line in enumerate(lines)
    )


def _suites(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every run of statements of one indentation."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        suite: list[ast.AST] = getattr(node, name, [])
        statements = [each for each in suite if isinstance(each, ast.stmt)]
        if statements:
            yield statements
        for each in suite:
            yield from _suites(each)


def _empty_strings(suite: list[ast.stmt], lines: list[str]) -> None:
    """Docstrings, and the strings that stand below constants and fields."""
    strings = [
        node
        for node in suite
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    # A suite that is nothing but a string needs it.
    for node in strings if len(strings) < len(suite) else []:
        start, end = node.lineno - 1, node.end_lineno or node.lineno
        before = lines[start].encode()[: node.col_offset]
        after = lines[end - 1].encode()[node.end_col_offset :]
        if not (before + after).strip():
            lines[start:end] = [""] * (end - start)
