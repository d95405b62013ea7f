"""`merge` and `verify`: a finished merge on disk, made or read again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..commands.options import write_gates
from ..commands.verify import checked_manifest
from ..errors import UsageError, input_errors
from ..output.manifest import read_manifest
from ..system.caller import Caller
from ..system.ranks import Rank
from .plans import Plan, Recipe, StrPath, beside, plan
from .torch_state import one_torch_thread

if TYPE_CHECKING:
    from typing_extensions import Unpack

Progress = Callable[[int, int], object]


class RunChoices(TypedDict, total=False):
    """Options of a run, none of which changes the bytes of the result."""

    resume: bool
    sha256: bool
    allow_nonfinite: bool
    deadline_s: float
    rank: int
    world: int
    patience_s: float


@dataclass(frozen=True)
class Result:
    """A merge in its folder.

    `manifest` is empty while other ranks still work. `seconds` and `gib_per_s` are those of the run
    that finished the merge. `warnings` are those of the plan and of this run.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return bool(self.manifest)

    @property
    def seconds(self) -> float:
        return float(self.manifest.get("timings", {}).get("total_s", 0.0))

    @property
    def gib_per_s(self) -> float:
        return float(self.manifest.get("gib_per_s", 0.0))


def merge(
    plan_or_recipe: Plan | Recipe,
    out: StrPath,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    **options: Unpack[RunChoices],
) -> Result:
    """Merge into the folder `out`, or resume an unfinished merge there; a finished one is kept.

    `device` is that of the plan unless given. `progress` is called with the bytes written and the
    bytes of the whole result, from another thread; an error that it raises stops the merge.
    `overwrite` replaces another merge, `resume=False` discards an unfinished one. Several processes
    share a merge as `rank` of `world`; one that is done raises Stopped if no other works on the
    rest after `patience_s`. After KeyboardInterrupt, or `deadline_s` seconds (Stopped), the same
    call resumes. Raises any class of `errors`.
    """
    began = time.monotonic()
    if isinstance(plan_or_recipe, Plan):
        planned = plan_or_recipe
    else:
        planned = plan(plan_or_recipe, device=device or "auto")
    place = Path(out)
    planned = beside(planned, place)
    warnings = list(planned.warnings)
    # A fork copies no other thread of the program, which may hold a lock.
    caller = Caller(warnings.append, progress, may_fork=threading.active_count() == 1)
    rank = Rank(options.get("rank", 0), options.get("world", 1))
    if not 0 <= rank.number < rank.world:
        raise UsageError(f"rank {rank.number} of {rank.world}: give 0 <= rank < world")
    with one_torch_thread():
        from ..engine.options import Clock, RunOptions
        from ..engine.run import run_merges

        run = RunOptions(
            device=device or planned.device,
            overwrite=overwrite,
            resume=options.get("resume", True),
            sha256=options.get("sha256", False),
            allow_nonfinite=options.get("allow_nonfinite", False),
            deadline_s=options.get("deadline_s"),
            patience_s=options.get("patience_s", RunOptions.patience_s),
            caller=caller,
            gates=write_gates,
        )
        run_merges([(planned.inner, place)], run, rank, Clock(began))
    manifest = read_manifest(place) or {}
    finished = manifest.get("key") == planned.key
    return Result(place, manifest if finished else {}, tuple(dict.fromkeys(warnings)))


def verify(out: StrPath) -> Result:
    """Read a finished merge again and compare it to its manifest.

    Raises InputError, whose `faults` names every file or tensor that differs.
    """
    with one_torch_thread(), input_errors("verify"):
        manifest = checked_manifest(Path(out))
    notes = manifest.get("notes") or []
    return Result(Path(out), manifest, tuple(map(str, notes)))
