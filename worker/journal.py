"""Lines of a journal: which piece of which tensor is in the shards, with its checksum."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from .checksum import DIGITS, Checksum, parse
from .cut import Piece


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


def claim_of(journal: str, entry: Entry) -> str:
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
