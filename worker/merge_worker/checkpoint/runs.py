"""Picks checkpoints of a training run by their steps, and leaves unfinished ones out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..messages import counted, first_names, printable
from ..recipe.schema import RunRequest
from .folder import PICKLES
from .header import read_shard
from .hub import Hub
from .model_files import survey
from .steps import Steps, find_steps, form_of, preferred
from .torch_zip import read_pickled

DCP_METADATA = ".metadata"
DCP_SUFFIX = ".distcp"
MOST = 10**15
"""Steps have fewer digits."""


class Picked(NamedTuple):
    """Checkpoints as words of models, the oldest first; a line about them; notes on the rest."""

    words: tuple[str, ...]
    summary: str
    notes: tuple[str, ...]


def pick(request: RunRequest, relative_to: Path, hub: Hub) -> Picked:
    """Pick the checkpoints that are asked for. Raises InputError if they are not there, or too few.

    Only the newest checkpoint of the run may be incomplete: it is left out, and a note says so. An
    older one is left out with `skip_incomplete`, and else an error.
    """
    found = find_steps(request.run, relative_to, hub)
    wanted = _wanted(request, found)
    newest = max(found.names, default=0)
    last, notes = request.numbers.get("last", len(wanted)), list[str]()
    taken: dict[int, str] = {}
    for step in reversed(wanted):
        if len(taken) == last:
            break
        name = preferred(found.names[step], found.folder)
        reason = None if found.folder is None else why_incomplete(found.folder / name)
        if reason is None:
            taken[step] = name
        elif request.skip_incomplete or (step == newest and not request.steps):
            notes.append(f"{request.run}: {printable(name)} is left out: {printable(reason)}")
        else:
            raise InputError(
                f"{request.run}: {printable(name)} is incomplete: {printable(reason)}\n"
                f"  it is not the newest; --skip-incomplete (skip_incomplete: true) leaves it out"
            )
    steps = sorted(taken)
    _refuse_too_few(request, steps, wanted)
    _refuse_other_forms(request, [taken[step] for step in steps], found)
    end = request.numbers.get("to", steps[-1] if request.steps else MOST)
    for name in (name for name, step in found.writing.items() if steps[-1] < step <= end):
        notes.append(f"{request.run}: {printable(name)} is left out: it is being written")
    if len(steps) < request.numbers.get("last", 0):
        notes.append(f"{request.run}: {counted(len(steps), 'checkpoints are')} all that there are")
    gaps = _gaps(steps, request)
    if gaps and "every" in request.numbers:
        notes.append(f"{request.run}: {gaps}")
    words = tuple(f"{found.prefix}{taken[step]}" for step in steps)
    return Picked(words, _summary(steps, len(found.names), gaps), tuple(notes))


def _wanted(request: RunRequest, found: Steps) -> list[int]:
    """Return the steps in the range or the list that is asked for, the oldest first."""
    if request.steps:
        missing = [step for step in request.steps if step not in found.names]
        if missing:
            near = min(found.names, key=lambda step: abs(step - missing[0]), default=None)
            raise InputError(
                f"{request.run}: no checkpoint of step {first_names(map(str, missing))}; "
                f"the nearest is {near}"
            )
        return list(request.steps)
    first, every = request.numbers.get("from", 0), request.numbers.get("every", 1)
    end = request.numbers.get("to")
    steps = [step for step in found.names if step >= first and (step - first) % every == 0]
    return [step for step in steps if end is None or step <= end]


def _refuse_too_few(request: RunRequest, steps: Sequence[int], wanted: Sequence[int]) -> None:
    least = request.numbers.get("min", 1)
    if len(steps) >= least and steps:
        return
    asked = ", ".join(f"{key} {value}" for key, value in request.numbers.items() if key != "min")
    have = f"{counted(len(steps), 'checkpoints')}{_ends(steps)}"
    left_out = f", {len(wanted) - len(steps)} incomplete" if len(wanted) > len(steps) else ""
    raise InputError(f"{request.run}: {have}{left_out} of {asked or 'all'}; the least is {least}")


def _refuse_other_forms(request: RunRequest, names: Sequence[str], found: Steps) -> None:
    """Raise InputError if some steps have the form that is preferred, and others only another."""
    forms = sorted({form_of(name) for name in names})
    if len(forms) > 1 and any(len(same) > 1 for same in found.names.values()):
        rarest = min(names, key=lambda name: sum(form_of(n) == form_of(name) for n in names))
        raise InputError(
            f"{request.run}: not all steps have one form ({', '.join(forms)}): "
            f"{printable(rarest)}\n"
            f"  take those of one form by a pattern: '{request.run.rstrip('/')}/*-hf'"
        )


def _ends(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    return f" (step {steps[0]}" + (f" … {steps[-1]})" if len(steps) > 1 else ")")


def _gaps(steps: Sequence[int], request: RunRequest) -> str:
    """Return where steps are missing between the first and the last, or ""."""
    apart = [after - before for before, after in pairwise(steps)]
    usual = request.numbers.get("every") or max(apart, key=apart.count, default=1)
    gaps = [before for before, gap in zip(steps, apart, strict=False) if gap > usual]
    if request.steps or not gaps:
        return ""
    return f"{counted(len(gaps), 'gaps')}, after step {first_names(map(str, gaps))}"


def _summary(steps: Sequence[int], count: int, gaps: str) -> str:
    """Return `step 1000 … 8000, 8 of 200 checkpoints, 1000 apart`."""
    apart = {after - before for before, after in pairwise(steps)}
    between = ""
    if apart:
        between = f", {min(apart)}" + (f" to {max(apart)}" if len(apart) > 1 else "") + " apart"
    ends = _ends(steps).strip(" ()")
    return f"{ends}, {len(steps)} of {counted(count, 'checkpoints')}{between}" + (
        gaps and f", {gaps}"
    )


def why_incomplete(path: Path) -> str | None:
    """Return why a checkpoint cannot be read to its end, from headers; None if it can.

    torch.distributed.checkpoint writes `.metadata` last; of safetensors the index comes last, and
    each header states the size of its file.
    """
    if path.is_symlink() and not path.exists():
        return "a link that leads nowhere"
    try:
        if path.is_dir():
            return _folder_fault(path)
        _read_header(path)
    except OSError as error:
        return error.strerror
    except InputError as error:
        return str(error).splitlines()[0].removeprefix(f"{path}").lstrip(":/ ")
    return None


def _folder_fault(path: Path) -> str | None:
    parts = [path, *(inner for inner in path.iterdir() if inner.is_dir())]
    for part in parts:
        names = [entry.name for entry in part.iterdir()]
        if DCP_METADATA in names:
            return None
        if any(name.endswith(DCP_SUFFIX) for name in names):
            return f"no {DCP_METADATA}, which is written last"
    files = survey(path, Hub())
    if not files.sets:
        return "no weights yet"
    for weights in files.sets:
        for name in weights.files:
            _read_header(path / name)
    return None


def _read_header(path: Path) -> None:
    if path.suffix in PICKLES:
        read_pickled(path)
    else:
        read_shard(path)
