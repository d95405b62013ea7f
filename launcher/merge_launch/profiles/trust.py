"""Whether a file of profiles in the current folder may decide what runs: it is the user's, or was
accepted once for its folder.

`setup`, `python`, `then` and others run as the user, and a folder of models may be anybody's.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import platformdirs

from merge_worker.messages import printable
from merge_worker.output.files import write_file

from ..errors import OutputError, UsageError
from .file import ProfileFile

ACCEPT = "merge-launch profile trust"


def applied(file: ProfileFile) -> ProfileFile:
    """Return a file whose settings are to apply, and say which one it is if it is not in the
    user's config folder. UsageError if it is not the user's, until its folder is accepted."""
    path = file.path
    if path is None or path.parent == Path(platformdirs.user_config_dir("merge-launch")):
        return file
    if not _is_own(path) and str(path.parent.resolve()) not in _accepted():
        raise UsageError(
            f"{printable(str(path))}: not yours, and may run commands as you\n"
            f"  read it; then '{ACCEPT}' here accepts it for this folder"
        )
    print(f"merge-launch: settings of {printable(str(path))} apply", file=sys.stderr)
    return file


def accept(folder: Path) -> None:
    """Accept the file of profiles in a folder from now on. OutputError."""
    folders = dict.fromkeys((*_accepted(), str(folder.resolve())))
    kept = _list()
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, os.fsencode("\0".join(folders)))  # which no name has
    except OSError as error:
        raise OutputError(f"{kept}: {error.strerror}") from None


def _is_own(path: Path) -> bool:
    """Return whether a file belongs to the user or to root, and others may not write to it."""
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & stat.S_IWOTH


def _accepted() -> list[str]:
    try:
        return os.fsdecode(_list().read_bytes()).split("\0")
    except OSError:
        return []


def _list() -> Path:
    return Path(platformdirs.user_state_dir("merge-launch")) / "trusted_folders"
