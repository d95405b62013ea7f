"""Records in the partial folder: key of the plan, journals of finished pieces, pending commit."""

from __future__ import annotations

import contextlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.json_files import read_object
from ..errors import InputError
from ..planning.step import Piece
from .checksums import DIGITS, Checksum, parse
from .files import FINAL_FILES, MANIFEST, is_result_name, unfinished
from .manifest import result_sizes

KEY = "key.json"
"""File in the partial folder: the key of its plan."""

COMMITTING = "committing.json"
"""File in the partial folder: shards are whole, files are being moved to their final names."""


@dataclass(frozen=True)
class WorkKey:
    """The key of unfinished work: that of its plan, and of the code that computes the numbers.

    A finished merge has the key of its plan alone. As text it identifies the owner of a lock.
    """

    plan: str
    code: str = ""

    def __str__(self) -> str:
        return f"{self.plan} {self.code}"

    @property
    def journals(self) -> str:
        """The prefix of the names of journals."""
        return f"journal-{self.plan[:16]}-{self.code[:8]}"


@dataclass(frozen=True)
class Head:
    """The file beside a journal: the files that its pieces were computed from, and written to.

    `inputs` are a place, an inode and a ctime of each file. They are compared if the place is the
    same: several nodes may have copies of a file on disks of their own.
    """

    inputs: tuple[tuple[str, int, int], ...]
    shards: tuple[int, ...]  # inodes

    def text(self) -> str:
        return json.dumps({"inputs": self.inputs, "shards": self.shards})

    def contradicts(self, inputs: tuple[tuple[str, int, int], ...]) -> bool:
        """Whether a file of these inputs is not the one of that time."""
        pairs = zip(self.inputs, inputs, strict=False)
        return any(old[0] == new[0] and old != new for old, new in pairs)


def head_name(journal: str) -> str:
    """Return the name of the file beside a journal."""
    return f"head-of-{journal}"


def read_head(folder: Path, journal: str) -> Head:
    """Return the head of a journal; one that knows nothing if it is damaged or missing."""
    value = read_object(folder / head_name(journal))
    try:
        stamps = ((str(place), int(inode), int(ctime)) for place, inode, ctime in value["inputs"])
        return Head(tuple(stamps), tuple(map(int, value["shards"])))
    except (ValueError, TypeError, LookupError, OverflowError):
        return Head((), ())


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished piece in the journal."""

    step: int
    piece: Piece
    checksum: Checksum
    nonfinite: int
    parts: tuple[tuple[Checksum, int], ...] = ()
    """Checksum and CRC-32 of each part of a piece that lies in several places."""

    def line(self) -> bytes:
        first, blocks = self.piece.first, self.piece.blocks
        text = f"{self.step} {first} {blocks} {self.checksum} {self.nonfinite}"
        if self.parts:
            text += " " + ",".join(f"{one}{crc:08x}" for one, crc in self.parts)
        return f"{text} {zlib.crc32(text.encode())}\n".encode()


def entry_id(journal: str, entry: Entry) -> str:
    """Return the name of a journal entry in the lists of lost entries."""
    return f"{journal} {entry.step} {entry.piece.first} {entry.piece.blocks}"


def parse_line(line: bytes) -> Entry | None:
    """Parse a journal line; None if it is torn, damaged, or of a version with other checksums."""
    text, _, check = line.strip().rpartition(b" ")
    fields = text.split()
    if (
        len(fields) not in (5, 6)
        or check != str(zlib.crc32(text)).encode()
        or len(fields[3]) != DIGITS
    ):
        return None
    try:
        step, first, blocks, nonfinite = (int(fields[number]) for number in (0, 1, 2, 4))
        checksum = parse(fields[3])
        texts = fields[5].split(b",") if len(fields) == 6 else []
        parts = tuple((parse(text[:DIGITS]), int(text[DIGITS:], 16)) for text in texts)
    except ValueError:
        return None
    entry = Entry(step, Piece(first, blocks), checksum, nonfinite, parts)
    return entry if min(step, first, blocks, nonfinite) >= 0 else None


def read_key(folder: Path) -> str | None:
    """Return the key of the merge in a partial folder: "" if unreadable, None if there is none."""
    shards = False
    with contextlib.suppress(OSError):  # shards first: the key is written before them
        shards = any(path.name.endswith(unfinished("")) for path in folder.iterdir())
    key = read_object(folder / KEY).get("key")
    return key if isinstance(key, str) else "" if shards else None


def is_of_others(folder: Path, key: WorkKey) -> bool:
    """Whether a partial folder holds work of another merge, or of code with other numbers."""
    found = read_work_key(folder, key)
    return found is not None and found != key


def read_work_key(folder: Path, own: WorkKey) -> WorkKey | None:
    """Return what the work in a partial folder depends on; None if it holds none.

    A power failure may leave an empty key file; the names of the journals hold the key, too.
    """
    key = read_key(folder)
    if key == "":
        names = [path.name for path in folder.glob("journal-*")]
        return own if all(name.startswith(f"{own.journals}-") for name in names) else WorkKey("")
    code = read_object(folder / KEY).get("code", "")
    return None if key is None else WorkKey(key, str(code))


def pending_commit(partial: Path) -> tuple[str, ...] | None:
    """Return the files an interrupted commit replaces; None if no commit has begun.

    A note that no commit writes is none: it may be damaged, or lead out of the folder.
    """
    names = read_object(partial / COMMITTING).get("replaces")
    if not isinstance(names, list) or not all(map(is_result_name, names)):
        return None
    try:
        result_sizes(partial / FINAL_FILES / MANIFEST)
    except (InputError, OSError):
        return None
    return tuple(names)
