"""An evaluation as a job of its own, which waits for the merge if that is not finished."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_worker.messages import printable
from merge_worker.output.files import MANIFEST
from merge_worker.recipe import parse
from merge_worker.recipe.shorthand import direct_recipe

from ..backends.base import Scheduler
from ..errors import UsageError, refuse
from ..job import payload
from ..job.job import Job, Part
from ..job.source import Merge
from ..submission.prepare import Request
from ..submission.submit import submit, submit_job
from ..tracking import records
from ..tracking.records import Record


@dataclass(frozen=True)
class Evaluated(Merge):
    """A merge that is evaluated; its recipe is not needed."""

    def title(self) -> str:
        return printable(f"evaluation of {Path(self.out).name}")


def evaluated(out: str, folder: str) -> Evaluated:
    """Return the merge in OUT, finished or not. Relative paths in it start at `folder`."""
    text = direct_recipe([out], method="passthrough")
    return Evaluated(text.encode(), parse(text, "eval"), out, folder)


def job_of(request: Request, merge: Merge, words: Sequence[str]) -> Job:
    """Return the job that runs the words of a command. Raises UsageError with every fault."""
    command = f"cd -- {shlex.quote(merge.folder)} && {shlex.join(words)}"
    options = dataclasses.replace(request.options, then=command)
    python = request.options.python or request.backend.python()
    job = Job(merge, options, request.worker, payload.build(), python, part=Part.EVAL)
    refuse(request.backend.faults(job, request.resources))
    return job


def submit_evaluation(request: Request, job: Job) -> list[Record]:
    """Submit a job; where the scheduler has dependencies it waits for an unfinished merge.

    Raises UsageError if OUT holds no merge and no job of one is known.
    """
    refuse(request.backend.obstacles(job, request.resources))
    backend: Any = request.backend
    if not isinstance(backend, Scheduler):
        return submit(request, (job,))
    after = [] if (Path(job.merge.out) / MANIFEST).is_file() else [merge_job(backend, job)]
    return [submit_job(request, job, request.render(job), after)]


def merge_job(backend: Scheduler[Any], job: Job) -> Record:
    """Return the newest job that merges into the OUT of an evaluation. UsageError without one."""
    out = job.merge.out
    known, _ = records.load()
    for record in known:
        merges = out in (record.out, *record.also) and not record.name.endswith(("-then", "-eval"))
        if merges and record.backend == backend.name and not record.superseded:
            if not backend.dependencies:
                break
            return record
    raise UsageError(
        f"{printable(out)}: no finished merge, and no job of {backend.name} that could be waited "
        f"for\n  evaluate it when its merge is finished"
    )
