"""A search → jobs: one worker here, or several on a cluster that share the folder of the search."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merge_worker.messages import printable
from merge_worker.registry import OWN, Registry
from merge_worker.search.candidates import MODEL, trial_name
from merge_worker.search.definition import Search, out_of, read_search, resolved_text

from ..backends.base import Scheduler
from ..errors import UsageError
from ..job.source import Merge, absolute, decoded, job_folder, safe_name
from ..settings.groups import SweepOptions
from ..submission.prepare import Findings, Request
from ..submission.submit import submit
from ..sweeps.arrays import submit_arrays
from ..sweeps.definition import Member, Sweep
from ..tracking.records import Record


@dataclass(frozen=True)
class SearchFile:
    """A search file that was read. `merge` stands for it in a job: its text is that of the search.

    `path` is the file as named in the command.
    """

    path: str
    search: Search
    merge: Merge


def read_file(
    path: str,
    out: str | None,
    folder: str,
    methods: Registry = OWN,
    batch: int | None = None,
) -> SearchFile:
    """Read a search file; `methods` are those that its recipes can name, `batch` replaces its own.

    Raises UsageError of either package, with every fault.
    """
    try:
        text = decoded(Path(path).expanduser().read_bytes(), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the file of a search") from None
    search = read_search(text, path, Path(folder), methods)  # faults have the lines of this text
    resolved = resolved_text(text, path, Path(folder), batch)
    if batch is not None:
        search = read_search(resolved, path, Path(folder), methods)
    target = absolute(out_of(search, out, path), folder)
    merge = Merge(resolved.encode(), search.example, target, folder, safe_name(Path(path).stem))
    return SearchFile(path, search, merge)


def findings(request: Request, file: SearchFile) -> Findings:
    """Check the job of a worker, and the plan of a first candidate as the worker will make it."""
    first = Path(file.merge.out) / trial_name(0) / MODEL
    example = dataclasses.replace(
        file.merge, text=file.search.example.text.encode(), out=str(first)
    )
    return dataclasses.replace(request, work="merge").findings(example)


def submit_workers(request: Request, file: SearchFile, count: int) -> Iterator[list[Record]]:
    """Submit `count` workers: as one array where the scheduler has arrays, else one by one."""
    begin = _first_number(file)
    merges = [
        dataclasses.replace(file.merge, job_name=f"w{begin + number}-{file.merge.job_name}")
        for number in range(count)
    ]
    backend = request.backend
    arrays = backend.arrays(request.resources) if isinstance(backend, Scheduler) else None
    if count > 1 and arrays is not None:
        members = tuple(Member(str(merge.job_name), {}, merge) for merge in merges)
        group = Sweep(file.path, file.merge.out, (), members, ())
        for _, records in submit_arrays(request, group, members, SweepOptions()):
            yield records
        return
    for merge in merges:
        yield submit(request, request.jobs(merge))


def _first_number(file: SearchFile) -> int:
    """Return the number of the next worker: logs of earlier ones are left alone."""
    folder = job_folder(file.merge.out)
    names = [path.name for path in folder.glob("w*-*")] if folder.is_dir() else []
    numbers = [int(match[1]) for name in names if (match := re.match(r"w(\d+)-", name))]
    return max(numbers, default=0) + 1


def title(file: SearchFile) -> str:
    """Return one line about the search."""
    search = file.search
    count = sum(len(dimension.axes) for dimension in search.space)
    values = f"{count} values" if count else "the weights of experts"
    return printable(f"{search.trials} trials of {values}, {search.direction} the score")
