"""What headers show before a job is submitted: the faults that the worker would find later."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import first_names, nearest

from .settings import WorkerOptions
from .source import Merge

if TYPE_CHECKING:
    from worker.plan import Plan

UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
BINARY_UNITS = {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", 1)}


def size_bytes(text: str | None) -> int | None:
    """4GiB, 5GB, 800M, 12345."""
    if text is None:
        return None
    found = re.fullmatch(r"([\d.]+)\s*([kmgt]?i?)b?", text.lower())
    units = UNITS | BINARY_UNITS
    if found is None or found[2] not in units:
        raise ValueError(text)
    return int(float(found[1]) * units[found[2]])


def plan_of(merge: Merge, options: WorkerOptions) -> Plan:
    """UsageError or InputError of the worker, with every fault."""
    from worker.match import Rules
    from worker.plan import make_plan
    from worker.resolve import PlanOptions

    include, exclude = ((text or "").split(",") for text in (options.include, options.exclude))
    rules = Rules(
        **_given(missing=options.missing, surplus=options.surplus),
        include=tuple(filter(None, include)),
        exclude=tuple(filter(None, exclude)),
    )
    given = _given(
        dtype=options.dtype,
        shard_bytes=size_bytes(options.shard_size),
        memory_bytes=size_bytes(options.memory),
        threads=options.threads,
        seed=options.seed,
        dequantize=options.dequantize,
    )
    folder = Path(merge.folder)
    chosen = PlanOptions(relative_to=folder, strict=options.strict, rules=rules, **given)
    return make_plan(merge.recipe, chosen)


def _given(**values: Any) -> dict[str, Any]:
    """The defaults of what was not given are the worker's."""
    return {name: value for name, value in values.items() if value is not None}


def _near(word: str, folder: str) -> str:
    """` (did you mean …?)` where the name on the hub looks like a folder here."""
    parent = Path(folder) / Path(word).parent
    try:
        found = nearest(Path(word).name, [each.name for each in parent.iterdir() if each.is_dir()])
    except OSError:
        return ""
    return found.replace("'", f"'{Path(word).parent}/", 1)


def _perhaps_a_folder(word: str, folder: str) -> str:
    return f"{word}: no such folder here, so it is taken for one of the hub{_near(word, folder)}"


def look(merge: Merge, options: WorkerOptions, everything: bool) -> list[str]:
    """Warnings of a plan where the models are here, else which are not. WorkerError, all faults.

    `everything`: what is not here is nowhere.
    """
    absent = [path for path in merge.local_models() if not Path(path).exists()]
    hub = merge.hub_models()
    notes = []
    if absent:
        notes.append(f"not on this machine, so nobody looked into it yet: {first_names(absent)}")
    notes += [_perhaps_a_folder(word, merge.folder) for word in hub if _near(word, merge.folder)]
    if hub:
        notes.append(f"on the hub, so nobody looked into it yet: {first_names(hub)}")
    if notes and not everything:
        return [*notes, *merge.recipe.warnings]
    plan = plan_of(merge, options)
    return [*plan.warnings, *_full(plan, Path(merge.out), options)]


def _full(plan: Plan, out: Path, options: WorkerOptions) -> list[str]:
    """Warnings about OUT and its disk, if that is here. OutputError where the merge cannot go."""
    from worker.disk import finished, room
    from worker.occupied import refuse_occupied

    try:
        refuse_occupied(plan, out)
        if not out.parent.is_dir() or (finished(out) and not options.overwrite):
            return []
        found = room(plan, out)
    except OSError:  # that it cannot be looked at here need not hold on the node
        return []
    return found.refuse(out)
