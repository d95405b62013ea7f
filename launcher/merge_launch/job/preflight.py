"""Checks before a submission: faults that the worker would find later, from headers alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from merge_worker.messages import first_names, nearest

from ..settings.groups import WorkerOptions
from .source import Merge

if TYPE_CHECKING:
    from merge_worker.planning.plan import Plan


def with_runs_here(merge: Merge, options: WorkerOptions) -> Merge:
    """Return a merge that lists the checkpoints of its runs, if these are on this machine.

    Else the worker picks them where it runs. Raises UsageError or InputError of the worker.
    """
    from merge_worker.checkpoint.hub import Hub
    from merge_worker.checkpoint.steps import is_here
    from merge_worker.planning.options import earlier_recipes
    from merge_worker.planning.runs import with_listed_runs

    folder, recipe = Path(merge.folder), merge.recipe
    if recipe.listed or not all(is_here(run.request.run, folder) for run in recipe.runs()):
        return merge
    earlier = earlier_recipes(merge.out, vars(options))
    recipe = with_listed_runs(recipe, folder, Hub(), earlier)
    return dataclasses.replace(merge, recipe=recipe, text=recipe.text.encode())


def plan_of(merge: Merge, options: WorkerOptions) -> Plan:
    """Plan a merge as the worker will. Raises its UsageError or InputError with every fault."""
    from merge_worker.planning.options import PlanOptions
    from merge_worker.planning.plan import make_plan

    values = {**vars(options), "relative_to": merge.folder}
    return make_plan(merge.recipe, PlanOptions.from_values(values, merge.out))


def check(merge: Merge, options: WorkerOptions, all_here: bool) -> list[str]:
    """Plan a merge if its models are on this machine; return warnings, and models not checked.

    `all_here`: missing models are errors, since the job runs on this machine. Raises WorkerError
    with every fault.
    """
    missing = [path for path in merge.local_models() if not Path(path).exists()]
    hub = merge.hub_models()
    notes = [f"not on this machine; not checked: {first_names(missing)}"] if missing else []
    for model in hub:
        if hint := _similar_folder(model, merge.folder):
            notes.append(f"{model}: no such folder, so it is read from the Hub{hint}")
    if hub:
        notes.append(f"on the Hub; not checked: {first_names(hub)}")
    if notes and not all_here:
        return [*notes, *merge.recipe.warnings]
    plan = plan_of(merge, options)
    return [*plan.warnings, *_check_output(plan, Path(merge.out), options)]


def _similar_folder(model: str, folder: str) -> str:
    """Return ` (did you mean …?)` if the name of a Hub model resembles a folder here, else ''."""
    parent = Path(folder) / Path(model).parent
    try:
        folders = [path.name for path in parent.iterdir() if path.is_dir()]
    except OSError:
        return ""
    return nearest(Path(model).name, folders).replace("'", f"'{Path(model).parent}/", 1)


def _check_output(plan: Plan, out: Path, options: WorkerOptions) -> list[str]:
    """Check OUT and its disk if they are on this machine; return warnings. Raises OutputError."""
    from merge_worker.output.files import finished
    from merge_worker.output.space import disk_space
    from merge_worker.output.target import refuse_occupied

    try:
        refuse_occupied(plan, out)
        if not out.parent.is_dir() or (finished(out) and not options.overwrite):
            return []
        space = disk_space(plan, out)
    except OSError:  # a folder that cannot be read here may be readable on the node
        return []
    return space.refuse(out)
