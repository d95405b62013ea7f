"""What is in OUT before a merge, and whether the merge may go there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import OutputError
from ..messages import first_names, printable
from ..planning.plan import Plan
from .files import MANIFEST, PARTIAL, PASSING, finished, output_errors
from .journal import journal_prefix, pending_commit, read_key
from .manifest import read_manifest
from .space import disk_space

# MERGED What must not be where OUT goes, whatever is merged: inputs, and files of others. No torch.


def refuse_occupied(plan: Plan, out: Path) -> None:
    """OutputError for what a look shows, before anything is begun there."""
    refuse_inputs(out, inputs_of(plan))
    refuse_file(out)
    if out.is_dir() and not finished(out):
        refuse_foreign(out)


def inputs_of(plan: Plan) -> dict[str, Path]:
    """The folders or files of all models, by what the recipe calls them."""
    return {label: model.path for label, model in plan.inputs.items()}


def refuse_inputs(out: Path, inputs: Mapping[str, Path]) -> None:
    """OutputError if OUT is one of the inputs, in one, or around one; links are followed."""
    real = out.resolve()
    for label, path in inputs.items():
        place = path.resolve()
        if real == place or place in real.parents or real in place.parents:
            how = "is" if real == place else "is inside" if place in real.parents else "contains"
            raise OutputError(
                f"{out}: {how} the input {label}; inputs are never changed, choose another folder"
            )


def refuse_file(out: Path) -> None:
    """OutputError if OUT is there, and no folder."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; give a folder for the merged model")


def refuse_foreign(out: Path, ours: Collection[str] = ()) -> None:
    """OutputError if a folder holds more than `ours` and what an unfinished merge has there."""
    names = sorted(path.name for path in out.iterdir())
    foreign = [name for name in names if not name.startswith(PARTIAL) and name not in ours]
    if foreign:
        raise OutputError(
            f"{out}: not empty, and not of a merge of ours: {first_names(foreign)}\n"
            f"  choose another folder, or move these files away"
        )


LOOKS = 100
"""At what changes meanwhile; a merge changes it a few times."""


class State(Enum):
    """What is to be done with OUT."""

    FRESH = "fresh"
    FINISHED = "finished"  # this very merge
    RESUME = "resume"  # begun by an earlier run
    COMMIT = "commit"  # only the renaming is left


@dataclass(frozen=True)
class Target:
    """OUT as found; `replaces` are files of an older merge that go away when this one is whole."""

    state: State
    replaces: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def inspect_output(plan: Plan, out: Path, *, overwrite: bool, resume: bool) -> Target:
    """Decide, without changing anything. OutputError if OUT holds what we must not touch."""
    for _ in range(LOOKS):
        before = _snapshot(out)
        try:
            with output_errors(out):
                return _survey(plan, out, overwrite=overwrite, resume=resume)
        except OutputError:
            if _snapshot(out) == before:
                raise
    raise OutputError(f"{out}: somebody else writes here; give a folder that no other program uses")


def _snapshot(out: Path) -> tuple[object, ...]:
    """What ranks of a merge change when they begin and end, which they may do at any time.

    Of a state that is half of before and half of after, one would think wrong.
    """
    partial, paths = out / PARTIAL, list[Path]()
    with contextlib.suppress(OSError):
        paths = sorted(out.iterdir())
    return paths, read_key(partial), pending_commit(partial)


def _survey(plan: Plan, out: Path, *, overwrite: bool, resume: bool) -> Target:
    refuse_inputs(out, inputs_of(plan))
    if not out.exists():
        return Target(State.FRESH, warnings=_space(plan, out))
    refuse_file(out)
    partial = out / PARTIAL
    _no_links(partial)
    key = _key(partial, plan)
    replaces = pending_commit(partial)
    if replaces is not None and key == plan.key:
        return Target(State.COMMIT, replaces)
    finished = read_manifest(out)
    if finished is not None and finished.get("key") == plan.key and not overwrite:
        _unchanged(out, finished)
        return Target(State.FINISHED)
    if finished is not None and not overwrite:
        raise OutputError(
            f"{out}: holds another finished merge; choose another folder, "
            f"or --overwrite to replace it"
        )
    ours = _files_of(finished) if finished is not None else ()
    refuse_foreign(out, ours)
    if key is not None and key != plan.key and not overwrite and resume:
        raise OutputError(
            f"{out}: holds an unfinished merge of another recipe, other options or changed inputs\n"
            f"  --no-resume discards it, or choose another folder"
        )
    again = key == plan.key and resume
    return Target(State.RESUME if again else State.FRESH, ours, _space(plan, out))


def _no_links(partial: Path) -> None:
    """Refuse to write into files that have another name elsewhere: it may be an input's."""
    found = [partial] if partial.is_symlink() else []
    for here, folders, names in os.walk(partial):
        for path in (Path(here) / name for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):  # other ranks come and go
                status = path.lstat()
                # A lock has two names here for a moment, and is never opened to be written.
                own = path.name.startswith(PASSING)
                twice = stat.S_ISREG(status.st_mode) and status.st_nlink > 1 and not own
                found += [path] if twice or stat.S_ISLNK(status.st_mode) else []
    if found:
        raise OutputError(
            f"{printable(str(found[0]))}: is a link, or has a second name elsewhere, and nothing "
            f"is written through it\n  remove {printable(str(partial))}, or choose another folder"
        )


def _key(partial: Path, plan: Plan) -> str | None:
    """The key of what was begun there, "" if nobody can tell; None if nothing was.

    A machine that loses its power may leave an empty note of it; the journals' names tell, too.
    """
    key = read_key(partial)
    if key == "":
        names = [path.name for path in partial.glob("journal-*")]
        if all(name.startswith(journal_prefix(plan.key)) for name in names):
            return plan.key
    return key


def _files_of(finished: dict[str, object]) -> tuple[str, ...]:
    """Top-level names that a finished merge of ours wrote."""
    names = [str(entry.get("file", "")).split("/")[0] for entry in _outputs(finished)]
    # A manifest may come from elsewhere; nothing outside OUT may ever be removed for it.
    return (*dict.fromkeys(name for name in names if name not in ("", ".", "..")), MANIFEST)


def _outputs(finished: dict[str, object]) -> list[dict[str, object]]:
    outputs = finished.get("outputs")
    return [o for o in outputs if isinstance(o, dict)] if isinstance(outputs, list) else []


def _unchanged(out: Path, finished: dict[str, object]) -> None:
    for entry in _outputs(finished):
        path = out / str(entry.get("file"))
        if not path.is_file() or path.stat().st_size != entry.get("bytes"):
            raise OutputError(
                f"{path}: missing or changed since this merge was finished\n"
                f"  --overwrite makes all of it again"
            )


def _space(plan: Plan, out: Path) -> tuple[str, ...]:
    """Refuse before the start what the file system or a quota cannot hold; warnings."""
    with output_errors(out):
        there = disk_space(plan, out)
    told = there.refuse(out)
    if not os.access(there.place, os.W_OK | os.X_OK):
        raise OutputError(f"{there.place}: no permission to write here")
    return tuple(told)
