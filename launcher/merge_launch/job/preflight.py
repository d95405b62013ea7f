"""What headers show before a job is submitted: the faults that the worker would find later."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merge_worker.messages import first_names, nearest

from ..settings.groups import WorkerOptions
from .source import Merge

if TYPE_CHECKING:
    from merge_worker.planning.plan import Plan


def plan_of(merge: Merge, options: WorkerOptions) -> Plan:
    """Plan a merge as the worker will. Raises its UsageError or InputError, with every fault."""
    from merge_worker.planning.options import PlanOptions
    from merge_worker.planning.plan import make_plan

    values = {**vars(options), "relative_to": merge.folder}
    return make_plan(merge.recipe, PlanOptions.from_values(values, merge.out))


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


def check(merge: Merge, options: WorkerOptions, all_here: bool) -> list[str]:
    """Warnings of a plan where the models are here, else which are not. WorkerError, all faults.

    `all_here`: what is not here is nowhere.
    """
    absent = [path for path in merge.local_models() if not Path(path).exists()]
    hub = merge.hub_models()
    notes = []
    if absent:
        notes.append(f"not on this machine, so nobody looked into it yet: {first_names(absent)}")
    notes += [_perhaps_a_folder(word, merge.folder) for word in hub if _near(word, merge.folder)]
    if hub:
        notes.append(f"on the hub, so nobody looked into it yet: {first_names(hub)}")
    if notes and not all_here:
        return [*notes, *merge.recipe.warnings]
    plan = plan_of(merge, options)
    return [*plan.warnings, *_full(plan, Path(merge.out), options)]


def _full(plan: Plan, out: Path, options: WorkerOptions) -> list[str]:
    """Warnings about OUT and its disk, if that is here. OutputError where the merge cannot go."""
    from merge_worker.output.files import finished
    from merge_worker.output.space import disk_space
    from merge_worker.output.target import refuse_occupied

    try:
        refuse_occupied(plan, out)
        if not out.parent.is_dir() or (finished(out) and not options.overwrite):
            return []
        found = disk_space(plan, out)
    except OSError:  # that it cannot be looked at here need not hold on the node
        return []
    return found.refuse(out)
