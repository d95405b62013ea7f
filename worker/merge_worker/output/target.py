"""State of OUT before a merge, and whether the merge may be written there. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint.folder import is_hub_id
from ..errors import OutputError, UsageError
from ..messages import first_names, printable
from ..planning.plan import Plan
from .code import code_digest
from .files import ASIDE, FINAL_FILES, MANIFEST, PARTIAL, PASSING, finished, output_errors
from .journal import WorkKey, pending_commit, read_key, read_work_key
from .manifest import RECORDING, read_manifest, result_sizes
from .side_files import refuse_conflicts
from .space import disk_space

ATTEMPTS = 100
"""Inspections of a folder that changes meanwhile; a merge changes it a few times."""


class State(Enum):
    """The work that remains to be done in OUT."""

    FRESH = "fresh"
    FINISHED = "finished"  # this very merge
    RESUME = "resume"  # begun by an earlier run
    COMMIT = "commit"  # only the renaming is left


@dataclass(frozen=True)
class Target:
    """State of OUT; `replaces`: files of an older merge, removed when this one is finished."""

    state: State
    replaces: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def inspect_output(plan: Plan, out: Path, *, overwrite: bool, resume: bool) -> Target:
    """Determine the state of OUT without changing it. OutputError if the merge may not go there."""
    for _ in range(ATTEMPTS):
        before = _snapshot(out)
        try:
            with output_errors(out):
                return _inspect(plan, out, overwrite=overwrite, resume=resume)
        except OutputError:
            if _snapshot(out) == before:
                raise
    raise OutputError(f"{out}: another process is writing to this folder; choose another")


def refuse_occupied(plan: Plan, out: Path) -> None:
    """Raise OutputError if OUT is an input, a file, or a folder of other files."""
    _refuse_place(plan, out)
    if out.is_dir() and not finished(out):
        _refuse_foreign(out)


def refuse_model_as_out(out: str, models: Sequence[str]) -> None:
    """Refuse an OUT, the first word of a direct merge, that seems to be one of the models.

    UsageError if it looks like a model of the Hub, OutputError if it is there and a model.
    """
    path, order = Path(out).expanduser(), "OUT comes first: OUT MODEL MODEL…"
    with output_errors(path):
        if is_hub_id(out) and (not path.parent.exists() or any(map(is_hub_id, models))):
            fact = f"looks like a Hub model; a folder of this name is written ./{printable(out)}"
            raise UsageError(f"{printable(out)}: {fact}\n  {order}")
        if out in models:
            raise OutputError(f"{printable(out)}: is one of the models\n  {order}")
        unfinished = (path / PARTIAL).is_dir()
        if any(path.glob("*.safetensors")) and not unfinished and not finished(path):
            raise OutputError(f"{printable(out)}: holds a model\n  {order}")


def refuse_inputs(out: Path, inputs: Mapping[str, Path]) -> None:
    """Raise OutputError if OUT is, contains or lies in an input; links are followed."""
    real = out.resolve()
    for label, path in inputs.items():
        place = path.resolve()
        if real == place or place in real.parents or real in place.parents:
            how = "is" if real == place else "is inside" if place in real.parents else "contains"
            raise OutputError(
                f"{out}: {how} the input {label}; inputs are never changed, choose another folder"
            )


def _snapshot(out: Path) -> tuple[object, ...]:
    """Return what ranks change when they begin and end, which may happen at any time.

    An inspection that mixes states of before and after a change would be wrong.
    """
    partial, paths = out / PARTIAL, list[Path]()
    with contextlib.suppress(OSError):
        paths = sorted(out.iterdir())
    return paths, read_key(partial), pending_commit(partial)


def _inspect(plan: Plan, out: Path, *, overwrite: bool, resume: bool) -> Target:
    _refuse_place(plan, out)
    if not out.exists():
        return Target(State.FRESH, warnings=_space(plan, out))
    partial = out / PARTIAL
    _no_links(partial)
    own_key = WorkKey(plan.key, code_digest())
    key = read_work_key(partial, own_key)
    replaces = pending_commit(partial)
    if replaces is not None and key is not None and key.plan == plan.key and resume:
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
    own = _files_of(finished) if finished is not None else ()
    if replaces is not None:  # of a commit that was stopped half way and is discarded now
        own = (*own, *replaces, *result_sizes(partial / FINAL_FILES / MANIFEST))
    _refuse_foreign(out, own)
    if key is not None and key.plan != plan.key and not overwrite and resume:
        raise OutputError(
            f"{out}: holds an unfinished merge of another recipe, other options or changed inputs\n"
            f"  --no-resume discards it, or choose another folder"
        )
    resumed, warnings = key == own_key and resume, _space(plan, out)
    if resume and not resumed and key is not None and key.plan == plan.key:
        warnings += (f"{out}: begun by code that computes otherwise; begun anew",)
    return Target(State.RESUME if resumed else State.FRESH, _tops(own), warnings)


def _refuse_place(plan: Plan, out: Path) -> None:
    """Raise OutputError if OUT is an input or a file, InputError if names of files conflict."""
    refuse_conflicts(plan)
    refuse_inputs(out, {label: model.path for label, model in plan.inputs.items()})
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; give a folder for the merged model")


def _refuse_foreign(out: Path, own: Collection[str] = ()) -> None:
    """Raise OutputError if OUT holds files other than `own` and those of an unfinished merge."""
    names = sorted(path.name for path in out.iterdir())
    mine = _tops(own)
    foreign = [name for name in names if not name.startswith(PARTIAL) and name not in mine]
    for top in (out / name for name in mine if name not in own):
        inside = sorted(top.rglob("*")) if not top.is_symlink() else []
        files = (path for path in inside if path.is_symlink() or not path.is_dir())
        places = (path.relative_to(out).as_posix() for path in files)
        foreign += (place for place in places if place not in own)
    if foreign:
        raise OutputError(
            f"{out}: not empty, and not created by merge-worker: {first_names(foreign)}\n"
            f"  choose another folder, or move these files away"
        )


def _no_links(partial: Path) -> None:
    """Refuse to write through links: the file may be an input."""
    links = [partial] if partial.is_symlink() else []
    for here, folders, names in os.walk(partial):
        folders[:] = [name for name in folders if not name.startswith(ASIDE)]
        for path in (Path(here) / name for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):  # other ranks come and go
                status = path.lstat()
                # A lock has two names for a moment, and is never opened for writing.
                own = path.name.startswith(PASSING)
                twice = stat.S_ISREG(status.st_mode) and status.st_nlink > 1 and not own
                links += [path] if twice or stat.S_ISLNK(status.st_mode) else []
    if links:
        raise OutputError(
            f"{printable(str(links[0]))}: is a link, or has a second name elsewhere, and nothing "
            f"is written through it\n  remove {printable(str(partial))}, or choose another folder"
        )


def _files_of(finished: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the files that a finished merge wrote."""
    listed = (entry["file"] for entry in finished.get("outputs", ()))
    return (*listed, *finished.get(RECORDING, ()), MANIFEST)


def _tops(names: Iterable[str]) -> tuple[str, ...]:
    """Return the files and folders at the top of OUT that hold files of these names."""
    return tuple(dict.fromkeys(PurePosixPath(name).parts[0] for name in names))


def _unchanged(out: Path, finished: Mapping[str, Any]) -> None:
    for entry in finished.get("outputs", ()):
        path = out / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise OutputError(
                f"{path}: missing or changed since this merge was finished\n"
                f"  --overwrite merges again from the start"
            )


def _space(plan: Plan, out: Path) -> tuple[str, ...]:
    """Refuse a merge that the file system or a quota cannot hold. Returns warnings."""
    with output_errors(out):
        space = disk_space(plan, out)
    warnings = space.refuse(out)
    if not os.access(space.place, os.W_OK | os.X_OK):
        raise OutputError(f"{space.place}: no permission to write here")
    return tuple(warnings)
