"""Members of a sweep → job arrays: one submission of many jobs, which share one worker file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..backends.arrays import Arrays
from ..errors import ClusterError, LauncherError, UsageError
from ..job.job import SHORT_NAME
from ..job.source import job_folder, own_name
from ..process import answer
from ..settings.groups import SweepOptions
from ..submission.prepare import JobChain, Request
from ..submission.submit import job_files, scheduler_of, submit_script, unsubmitted
from ..tracking.records import Record, keep
from .definition import Member, Sweep
from .jobs import SubmittedMember, submit_after, submit_each

ARRAY_LIMIT = 1000
"""Members of an array if the scheduler does not report its limit; the default of most sites."""


def submit_arrays(
    request: Request, sweep: Sweep, members: Sequence[Member], options: SweepOptions
) -> Iterator[SubmittedMember]:
    """Submit arrays as large as the site allows.

    `--then` of each member waits for that member alone where the scheduler can express this, else
    it runs at the end of the member's own job.
    """
    arrays = _arrays_of(request)
    limit = _site_limit(arrays)
    most = min(options.array_size or limit, limit)
    for number, start in enumerate(range(0, len(members), most)):
        some = members[start : start + most]
        if len(some) < arrays.minimum_size:
            yield from submit_each(request, some)
        else:
            yield from _submit_array(request, sweep, some, number, options.at_once)


def _arrays_of(request: Request) -> Arrays:
    arrays = scheduler_of(request).arrays(request.resources)
    if arrays is None:
        raise UsageError(f"{request.backend.name} has no arrays; leave --array out")
    return arrays


def _site_limit(arrays: Arrays) -> int:
    with contextlib.suppress(ClusterError):
        return arrays.parse_size_limit(answer(arrays.size_limit_argv)) or ARRAY_LIMIT
    return ARRAY_LIMIT


def _submit_array(
    request: Request, sweep: Sweep, members: Sequence[Member], number: int, at_once: int | None
) -> Iterator[SubmittedMember]:
    backend, arrays = scheduler_of(request), _arrays_of(request)
    chains: list[JobChain] = [
        request.jobs(member.merge) if arrays.members_awaitable else (request.job(member.merge),)
        for member in members
    ]
    records = [unsubmitted(request, chain[0]) for chain in chains]
    folder, stem = job_folder(sweep.out), own_name(Path(sweep.path).stem)
    worker = chains[0][0].payload.embedded
    # Builds of the worker differ in name: a later array leaves the worker of a queued one alone.
    worker_file = folder / f"{worker.digest[:16]}-{worker.name}"
    merges = [dataclasses.replace(chain[0], worker_file=str(worker_file)) for chain in chains]
    texts = [request.render(merge) for merge in merges]
    script = folder / f"{stem}-{number}.{backend.suffix}"
    name = stem[:SHORT_NAME].rstrip("-.")
    words = [*arrays.options(len(members), at_once, name), *arrays.output(str(folder))]
    with contextlib.ExitStack() as files:
        if not (worker_file.is_file() and worker_file.read_bytes() == worker.data):
            files.enter_context(job_files(worker_file, worker.data))
        for merge, record, text in zip(merges, records, texts, strict=True):
            files.enter_context(job_files(Path(record.script), text, merge))
        files.enter_context(job_files(script, array_text(texts[0], records, arrays.index_variable)))
        array = dataclasses.replace(records[0], script=str(script), job_name=name)
        array = submit_script(backend, array, words)
    submitted = []
    for position, record in enumerate(records):
        own = {key: getattr(record, key) for key in ("out", "log", "name", "script", "log_bytes")}
        job_id = arrays.member_id(array.job_id, position)
        submitted.append(keep(dataclasses.replace(array, job_id=job_id, **own)))
    failures: list[LauncherError] = []
    for member, chain, record in zip(members, chains, submitted, strict=True):
        yield member, [record, *submit_after(request, [record], chain[1:], failures)]
    if failures:
        raise failures[0]


def array_text(first: str, members: Sequence[Record], number: str) -> str:
    """Return the directives of the first member's job and lines that run each member's own text."""
    lines = first.splitlines()
    above = next(at for at, line in enumerate(lines) if not line.startswith("#") or at > 200)
    directives = [line for line in lines[:above] if line.startswith(("#!", "#SBATCH ", "#PBS "))]
    scripts = "\n".join(member.script for member in members)
    return "\n".join(directives) + ARRAY.format(number=number, count=len(members), scripts=scripts)


ARRAY = """
# An array of {count} merges, made by merge-launch. Each runs the text of its own job, which carries
# recipe and options; the worker lies once beside this file. Any of them may be submitted alone.
set -euo pipefail
member=$(sed -n "$((${number} + 1))p" <<'MERGE_MEMBERS'
{scripts}
MERGE_MEMBERS
)
exec bash "$member" >> "${{member%.*}}.log" 2>&1
"""
