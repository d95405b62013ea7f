"""Records in the partial folder: key of the plan, journals of finished pieces, pending commit."""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.json_files import read_object
from ..errors import InputError
from ..planning.step import Piece
from .checksums import DIGITS, Checksum, parse
from .files import FINAL_FILES, MANIFEST, is_result_name, unfinished
from .manifest import result_names

KEY = "key.json"
"""File in the partial folder: the key of its plan."""

COMMITTING = "committing.json"
"""File in the partial folder: shards are whole, files are being moved to their final names."""


def journal_prefix(key: str) -> str:
    """Return the prefix of the names of a merge's journals."""
    return f"journal-{key[:16]}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished piece in the journal."""

    step: int
    piece: Piece
    checksum: Checksum
    nonfinite: int

    def line(self) -> bytes:
        first, blocks = self.piece.first, self.piece.blocks
        text = f"{self.step} {first} {blocks} {self.checksum} {self.nonfinite}"
        return f"{text} {zlib.crc32(text.encode())}\n".encode()


def entry_id(journal: str, entry: Entry) -> str:
    """Return the name of a journal entry in the lists of lost entries."""
    return f"{journal} {entry.step} {entry.piece.first} {entry.piece.blocks}"


def parse_line(line: bytes) -> Entry | None:
    """Parse a journal line; None if it is torn, damaged, or of a version with other checksums."""
    text, _, check = line.strip().rpartition(b" ")
    fields = text.split()
    if len(fields) != 5 or check != str(zlib.crc32(text)).encode() or len(fields[3]) != DIGITS:
        return None
    try:
        step, first, blocks, nonfinite = (int(fields[number]) for number in (0, 1, 2, 4))
        checksum = parse(fields[3])
    except ValueError:
        return None
    entry = Entry(step, Piece(first, blocks), checksum, nonfinite)
    return entry if min(step, first, blocks, nonfinite) >= 0 else None


def read_key(folder: Path) -> str | None:
    """Return the key of the merge in a partial folder: "" if unreadable, None if there is none."""
    shards = False
    with contextlib.suppress(OSError):  # shards first: the key is written before them
        shards = any(path.name.endswith(unfinished("")) for path in folder.iterdir())
    key = read_object(folder / KEY).get("key")
    return key if isinstance(key, str) else "" if shards else None


def pending_commit(partial: Path) -> tuple[str, ...] | None:
    """Return the files an interrupted commit replaces; None if no commit has begun.

    A note that no commit writes is none: it may be damaged, or lead out of the folder.
    """
    names = read_object(partial / COMMITTING).get("replaces")
    if not isinstance(names, list) or not all(map(is_result_name, names)):
        return None
    try:
        result_names(partial / FINAL_FILES / MANIFEST)
    except InputError:
        return None
    return tuple(names)
