"""Files that the hub has. hub.py, which gets them, is imported late, since it imports this."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Remote(NamedTuple):
    """A file that may not be here yet."""

    repository: str
    commit: str
    name: str
    size: int


files: dict[str, Remote] = {}

pins: dict[tuple[str, str | None], str] = {}
"""Commits to take for models and their revisions, where a merge is done again."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_REVISION = re.compile(r"[\w./-]+")
_SNAPSHOT = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/?")


def is_hub_name(word: str, revision: bool = False) -> bool:
    """Return whether a word has the form `org/name`, or `org/name@revision` if that may follow."""
    name, at, commit = word.partition("@") if revision else (word, "", "")
    return bool(_HUB_NAME.fullmatch(name) and (not at or _REVISION.fullmatch(commit)))


def snapshot(path: Path) -> tuple[str, str] | None:
    """Hub id and commit of a folder in a cache of the hub."""
    found = _SNAPSHOT.fullmatch(path.absolute().as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None


def names(folder: Path) -> list[str]:
    """Files of weights that the hub has for a folder of its cache."""
    return [remote.name for path, remote in files.items() if Path(path).parent == folder]


def absent(path: str) -> bool:
    """Whether a file is on the hub, but not here yet."""
    return path in files and not Path(path).exists()


def size(path: str) -> int:
    return files[path].size
