"""What headers show before a job is submitted: the faults that the worker would find later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worker import features
from worker.errors import WorkerError, first_names, nearest

from . import needs
from .settings import WorkerOptions
from .source import Merge

if TYPE_CHECKING:
    from worker.plan import Plan


def plan_of(merge: Merge, options: WorkerOptions) -> Plan:
    """Plan a merge as the worker will. Raises its UsageError or InputError, with every fault."""
    from worker.plan import make_plan
    from worker.resolve import PlanOptions

    values = {**vars(options), "relative_to": merge.folder}
    return make_plan(merge.recipe, PlanOptions.from_values(values, merge.out))


@dataclass(frozen=True)
class Look:
    """What a look at the models of a merge has shown; `features` are the parts that it needs."""

    features: frozenset[str]
    warnings: tuple[str, ...] = ()
    fault: WorkerError | None = None

    def told(self) -> list[str]:
        """The warnings. WorkerError with all faults."""
        if self.fault is not None:
            raise self.fault
        return list(self.warnings)


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


def look(merge: Merge, options: WorkerOptions, everything: bool) -> Look:
    """Plan the merge where its models are here; else say that nobody could look.

    `everything`: what is not here is nowhere.
    """
    absent = [path for path in merge.local_models() if not Path(path).exists()]
    hub = merge.hub_models()
    said = needs.said(merge.recipe, options)
    notes = []
    if absent:
        notes.append(f"not on this machine, so nobody looked into it yet: {first_names(absent)}")
    notes += [_perhaps_a_folder(word, merge.folder) for word in hub if _near(word, merge.folder)]
    if hub:
        notes.append(f"on the hub, so nobody looked into it yet: {first_names(hub)}")
    if notes and not everything:
        return Look(said | needs.UNSEEN, (*notes, *merge.recipe.warnings))
    features.used.clear()
    try:
        plan = plan_of(merge, options)
    except WorkerError as error:
        return Look(said | needs.UNSEEN, fault=error)
    # The same job text from here and from where the hub was not asked.
    found = said | (needs.UNSEEN if hub else features.used)
    try:
        return Look(found, (*plan.warnings, *_full(plan, Path(merge.out), options)))
    except WorkerError as error:
        return Look(found, plan.warnings, error)


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
