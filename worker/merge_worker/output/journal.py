"""Notes in the partial folder: whose it is, which piece of which tensor is in the shards, with its
checksum, and whether the end has begun."""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..planning.step import Piece
from .checksums import DIGITS, Checksum, parse
from .files import unfinished

KEY = "key.json"
"""In the partial folder: the key of the plan that it belongs to."""

COMMITTING = "committing.json"
"""In the partial folder: the shards are whole, files are being moved to their final names."""


def journal_prefix(key: str) -> str:
    """Of the names of the journals of a merge."""
    return f"journal-{key[:16]}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished piece in the journal."""

    step: int
    piece: Piece
    checksum: Checksum
    nonfinite: int

    def line(self) -> bytes:
        text = (
            f"{self.step} {self.piece.first} {self.piece.blocks} {self.checksum} {self.nonfinite}"
        )
        return f"{text} {zlib.crc32(text.encode())}\n".encode()


def entry_id(journal: str, entry: Entry) -> str:
    """How a line of a journal is named where it is taken back."""
    return f"{journal} {entry.step} {entry.piece.first} {entry.piece.blocks}"


def parse_line(line: bytes) -> Entry | None:
    """The entry of a journal line; None for a torn or damaged one."""
    text, _, check = line.strip().rpartition(b" ")
    fields = text.split()
    if len(fields) != 5 or not check.isdigit() or zlib.crc32(text) != int(check):
        return None
    if len(fields[3]) != DIGITS:  # of a version with other checksums
        return None
    step, first, blocks, nonfinite = (int(fields[number]) for number in (0, 1, 2, 4))
    return Entry(step, Piece(first, blocks), parse(fields[3]), nonfinite)


def read_key(folder: Path) -> str | None:
    """The key of the merge in a partial folder, "" if it cannot be read, None if there is none."""
    shards = False
    with contextlib.suppress(OSError):  # shards first: who makes them has written the key before
        shards = any(path.name.endswith(unfinished("")) for path in folder.iterdir())
    try:
        return str(json.loads((folder / KEY).read_text())["key"])
    except (OSError, ValueError, LookupError, TypeError):
        return "" if shards else None


def pending_commit(partial: Path) -> tuple[str, ...] | None:
    """What a merge that was stopped while it moved its files replaces; None if there is none."""
    try:
        return tuple(json.loads((partial / COMMITTING).read_text())["replaces"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
