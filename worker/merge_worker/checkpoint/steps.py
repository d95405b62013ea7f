"""Names of checkpoints of a training run → their steps: folders, files, revisions of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..messages import first_names, printable
from .hub import Hub, is_hub_name
from .weight_sets import find_pickles, find_sets

_END = r"[-_=]?(\d{1,15})(?![A-Za-z0-9]|\.\d)"
_START = r"(?i)(?:^|[^A-Za-z])(?:"
_NUMBERS = (
    re.compile(rf"{_START}(?:global[-_]?)?steps?|iter(?:ation)?s?){_END}"),
    re.compile(rf"{_START}checkpoints?|ckpts?){_END}|^(\d{{1,15}})$"),
    re.compile(rf"{_START}epochs?){_END}"),
)
"""Where names hold a step, the first that matches; epochs only in a run that has no steps."""
_EPOCH = len(_NUMBERS) - 1

_WRITING = re.compile(r"(?i)(^|[-_.])(te?mp|partial|incomplete)([-_.\d]|$)")
"""Names that programs give a checkpoint until it is whole: `tmp-checkpoint-500`, `step500.tmp`."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = re.compile(r"(?i)optim|scheduler|random|(^|[-_.])rng|scaler")
"""Files that trainers write beside weights."""

_CONVERTED = re.compile(r"(?i)[-_.]hf$")
_PATTERN = re.compile(r"[*?\[]")


class Steps(NamedTuple):
    """Checkpoints of a run. `names` holds all names of each step, the oldest first.

    `prefix` before a name makes it the word of a model. `folder` is None on the Hub. `writing`:
    names and steps of those that are being written.
    """

    prefix: str
    folder: Path | None
    names: dict[int, list[str]]
    writing: dict[str, int]


def find_steps(run: str, relative_to: Path, hub: Hub) -> Steps:
    """Return the checkpoints of a run. Raises InputError if there are none.

    `run` is a folder, a folder with a pattern of names, or a Hub model with one of revisions. A
    folder without checkpoints may hold one folder that has them.
    """
    name, at, pattern = run.partition("@")
    path = relative_to / Path(run).expanduser()
    if at and is_hub_name(name) and not path.exists():
        revisions = hub.revisions(name)
        found = _steps(f"{name}@", None, [r for r in revisions if _fits(r, pattern)])
        if not found.names:
            raise InputError(
                f"{run}: no such revision with a step; there are {first_names(revisions)}"
            )
        return found
    stem, pattern = run.rstrip("/") or run, ""
    if not path.is_dir() and _PATTERN.search(path.name):
        stem, _, pattern = stem.rpartition("/")
        path = path.parent
    if not path.is_dir():
        raise InputError(f"{run}: no such folder; give the one that holds the checkpoints")
    prefix = f"{stem}/" if stem or run.startswith("/") else ""
    found = _steps(prefix, path, _checkpoints(path, pattern))
    if found.names or found.writing:
        return found
    folders = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    inner = {f"{prefix}{name}/": path / name for name in folders}
    every = [_steps(word, p, _checkpoints(p, pattern)) for word, p in inner.items()]
    below = [steps for steps in every if steps.names]
    if len(below) > 1:
        listed = first_names([steps.prefix for steps in below])
        raise InputError(f"{run}: checkpoints in {listed}; give one of these folders")
    if not below:
        raise InputError(
            f"{run}: no checkpoints; their names hold a step, such as step1000, iter_0001000, "
            f"checkpoint-500 or epoch=3-step=500"
        )
    return below[0]


def is_here(run: str, relative_to: Path) -> bool:
    """Return whether the folder of a run is on this machine."""
    path = relative_to / Path(run).expanduser()
    return path.is_dir() or bool(_PATTERN.search(path.name) and path.parent.is_dir())


def _fits(name: str, pattern: str) -> bool:
    return not pattern or fnmatchcase(name, pattern)


def _checkpoints(folder: Path, pattern: str) -> list[str]:
    """Return the names in a folder that may be checkpoints: folders, links, files of weights."""
    names = []
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or not _fits(entry.name, pattern):
            continue
        file = entry.name.lower().endswith(_WEIGHTS) and not _NO_WEIGHTS.search(entry.name)
        if file or entry.is_dir() or (entry.is_symlink() and not entry.is_file()):
            names.append(entry.name)
    return names


def _steps(prefix: str, folder: Path | None, names: Iterable[str]) -> Steps:
    """Sort names by their steps; those without a step are left out."""
    ranked = [(*found, name) for name in names if (found := step_of(name))]
    if any(rank < _EPOCH for rank, _, _ in ranked):
        ranked = [each for each in ranked if each[0] < _EPOCH]
    steps: dict[int, list[str]] = {}
    writing: dict[str, int] = {}
    for _, step, name in sorted(ranked, key=lambda each: (each[1], each[2])):
        if _WRITING.search(name):
            writing[name] = step
        else:
            steps.setdefault(step, []).append(name)
    return Steps(prefix, folder, steps, writing)


def step_of(name: str) -> tuple[int, int] | None:
    """Return how a name holds a step (0 is the clearest way), and the step; None without one."""
    suffix = next((s for s in _WEIGHTS if name.lower().endswith(s)), "")
    for rank, pattern in enumerate(_NUMBERS):
        if match := pattern.search(name[: len(name) - len(suffix)]):
            return rank, int(next(group for group in match.groups() if group))
    return None


def preferred(names: Sequence[str], folder: Path | None) -> str:
    """Return which of several checkpoints of one step is read. InputError if no rule decides.

    It is one that ends in `-hf`, else a folder with weights and `config.json`, else with weights.
    """
    if len(names) == 1:
        return names[0]
    ranked = sorted((_rank(name, folder), name) for name in names)
    if ranked[0][0] == ranked[1][0]:
        both = first_names([name for rank, name in ranked if rank == ranked[0][0]])
        raise InputError(
            f"{both}: checkpoints of one step; name those to take by a pattern: 'RUN/*-hf'"
        )
    return ranked[0][1]


def _rank(name: str, folder: Path | None) -> int:
    if _CONVERTED.search(name):
        return 0
    if folder is None:
        return 1
    try:
        files = [entry.name for entry in (folder / name).iterdir()]
    except OSError:  # a file
        return 3
    if not find_sets("", files) and not find_pickles("", files):
        return 4
    return 1 if "config.json" in files else 2


def form_of(name: str) -> str:
    """Return a name with its numbers taken out, to compare the forms of checkpoints."""
    return re.sub(r"\d+", "#", printable(name))
