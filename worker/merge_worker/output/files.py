"""Names of the files that only a merge writes; atomic writes; errors of the output folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint.json_files import is_inside
from ..errors import InputError, OutputError
from ..messages import printable
from ..recipe.recipe_file import PARTIAL as PARTIAL
from ..recipe.recipe_file import RECIPE as RECIPE

MANIFEST = "merge_manifest.json"
CARD = "README.md"
EVALUATION = "evaluation.json"

FINAL_FILES = "files"
"""A folder in PARTIAL: files of the result other than shards, under their final names."""

ASIDE = "old-"
"""How folders in PARTIAL begin that hold an older merge until the new one is committed."""

PASSING = (".", "lock-", "claim-")
"""How names in PARTIAL begin that ranks create and remove at any time: locks, temporary files."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk and of an exceeded quota."""


def unfinished(name: str) -> str:
    """Return the name of a file of weights in PARTIAL until it is whole, without a folder."""
    return f"{name.replace('/', '%2F')}.partial"


def is_result_name(name: object) -> bool:
    """Return whether a name that stands in a file can be that of a file of a finished merge."""
    return is_inside(name) and not str(name).startswith(PARTIAL)


def path_inside(out: Path, name: str) -> Path:
    """Return the path of a file of a merge in OUT. OutputError if a link leads it elsewhere."""
    path = out / name
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"{printable(str(path))}: a link leads out of the output folder")
    return path


def write_file(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a part.

    `durable` waits for the storage, which costs tens of milliseconds.
    """
    # File names need not be UTF-8: their odd bytes are written as JSON escapes them.
    raw = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    # Not by process id: containers on two hosts often have the same.
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Open a folder, whose names can be looked up in it whatever becomes of its own name."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def output_errors(out: Path) -> Iterator[None]:
    """Turn an OSError while writing below OUT into an error with the way out."""
    try:
        yield
    except OSError as error:
        place = Path(error.filename or out)
        in_out = out in (place, *place.parents) or place in out.parents
        # A failed copy does not say which of its two files failed.
        if not in_out and error.filename2 is None and error.errno not in FULL:
            raise InputError(f"{printable(str(place))}: {error.strerror}") from None
        raise OutputError(
            f"{out}: cannot write: {error.strerror}"
            f"{f' ({error.filename})' if error.filename else ''}\n"
            f"  finished work is kept; fix the cause and run the same command to resume"
        ) from None


def finished(out: Path) -> bool:
    """Whether OUT holds a finished merge."""
    return (out / MANIFEST).exists()
