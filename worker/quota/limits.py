"""What a quota is, and what is said where it is too small."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError, counted, printable


class Owner(NamedTuple):
    """Whose quota: a `user`, a `group` or a `project`, by number."""

    kind: str
    number: int

    def __str__(self) -> str:
        name = str(self.number)
        try:
            if self.kind == "user":
                name = pwd.getpwuid(self.number).pw_name
            elif self.kind == "group":
                name = grp.getgrgid(self.number).gr_name
        except KeyError:
            pass
        return f"{self.kind} {printable(name)}"


class Limit(NamedTuple):
    """Bytes or files; a limit of 0 is none. `late`: the time over the soft limit has run out."""

    used: int = 0
    soft: int = 0
    hard: int = 0
    late: bool = False

    @property
    def bound(self) -> int:
        """What can be used; 0 if there is no end to it."""
        if self.late and self.soft and self.used > self.soft:
            return self.soft
        return self.hard

    @property
    def left(self) -> int | None:
        return max(0, self.bound - self.used) if self.bound else None


class Quota(NamedTuple):
    """Of one owner on one file system."""

    whose: str
    space: Limit
    files: Limit = Limit()

    def refuse(self, out: Path, needs: int, files: int) -> list[str]:
        """Warnings about soft limits. OutputError where a merge does not fit."""
        told = []
        for limit, more, said in ((self.space, needs, _gigabytes), (self.files, files, _files)):
            if limit.left is not None and more > limit.left:
                raise OutputError(
                    f"{out}: needs {said(more)}, only {said(limit.left)} are left of the quota of "
                    f"{self.whose} there ({said(limit.bound)})\n"
                    f"  make room, or choose another folder"
                )
            if limit.soft and limit.used + more > limit.soft:
                told.append(
                    f"{out}: needs {said(more)}, which is more than the soft limit of "
                    f"{self.whose} there leaves ({said(limit.soft)}, {said(limit.used)} used)"
                )
        return told

    def as_json(self) -> dict[str, Any]:
        return {
            "of": self.whose,
            "bytes": _facts(self.space),
            "files": _facts(self.files),
        }


def _facts(limit: Limit) -> dict[str, int | None]:
    soft, hard = limit.soft or None, limit.hard or None
    return {"used": limit.used, "soft": soft, "hard": hard, "left": limit.left}


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _files(count: int) -> str:
    return counted(count, "files")
