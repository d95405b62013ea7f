"""Members of a sweep → job arrays: one submission of many, each with the text of its own job."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..backends.arrays import Arrays
from ..backends.base import Scheduler
from ..errors import ClusterError, LauncherError, UsageError
from ..job.job import SHORT_NAME
from ..job.source import safe_name
from ..process import answer
from ..submission import submit
from ..submission.prepare import SweepRequest
from ..tracking.records import Record
from .definition import Member
from .jobs import SubmittedMember, after, each

ARRAY_LIMIT = 1000
"""Members of an array where the scheduler does not tell; the built-in limit of most."""
MOST = 1_000_000


def arrays(
    order: SweepRequest, members: Sequence[Member], size: int | None, at_once: int | None
) -> Iterator[SubmittedMember]:
    """Arrays of as many members as the site allows. Each member's `--then` waits for it alone, or
    runs at its end."""
    form = _form(order)
    most = min(size or MOST, _limit(form))
    for number, first in enumerate(range(0, len(members), most)):
        some = members[first : first + most]
        if len(some) < form.least:
            yield from each(order, some)
        else:
            yield from _array(order, some, at_once, number)


def _form(order: SweepRequest) -> Arrays:
    backend = order.backend
    found = backend.arrays(order.resources) if isinstance(backend, Scheduler) else None
    if found is None:
        raise UsageError(f"{backend.name} has no arrays; leave --array out")
    return found


def _limit(form: Arrays) -> int:
    argv = form.limit_argv()
    with contextlib.suppress(ClusterError):
        return (argv and form.parse_limit(answer(argv))) or ARRAY_LIMIT
    return ARRAY_LIMIT


def _array(
    order: SweepRequest, members: Sequence[Member], at_once: int | None, number: int
) -> Iterator[SubmittedMember]:
    backend: Any = order.backend
    form = _form(order)
    parts = [order.parts(member, apart=form.awaited) for member in members]
    plain = [submit.unsent(backend, own[0][0], order.resources) for own in parts]
    out = Path(order.sweep.out)
    folder = out.with_name(f"{safe_name(out.name)}.job")
    script = folder / f"{safe_name(order.sweep.stem)}-{number}.{backend.suffix}"
    text = array_text(parts[0][0][1], plain, form.number)
    name = safe_name(order.sweep.stem)[:SHORT_NAME].rstrip("-.")
    words = [*form.options(len(members), at_once, name), *form.output(str(folder))]
    with contextlib.ExitStack() as files:
        for own, unsent in zip(parts, plain, strict=True):
            files.enter_context(submit.written(unsent, *own[0]))
        files.enter_context(submit.written_text(script, text))
        whole = dataclasses.replace(plain[0], script=str(script))
        array_id = submit.hand_over(backend, whole, words).job_id
    failures: list[LauncherError] = []
    for position, (member, own, unsent) in enumerate(zip(members, parts, plain, strict=True)):
        record = submit.named(unsent, form.member(array_id, position))
        yield member, [record, *after(order, record, own[1:], failures)]
    if failures:
        raise failures[0]


def array_text(first: str, members: Sequence[Record], number: str) -> str:
    """Directives of the first member's job, then the lines that run each member's own text."""
    lines = first.splitlines()
    above = next(at for at, line in enumerate(lines) if not line.startswith("#") or at > 200)
    directives = [line for line in lines[:above] if line.startswith(("#!", "#SBATCH ", "#PBS "))]
    scripts = "\n".join(each.script for each in members)
    return "\n".join(directives) + ARRAY.format(number=number, count=len(members), scripts=scripts)


ARRAY = """
# An array of {count} merges, made by merge-launch. Each runs the text of its own job, which carries
# worker, recipe and options. Any of them may also be submitted alone.
set -euo pipefail
member=$(sed -n "$((${number} + 1))p" <<'MERGE_MEMBERS'
{scripts}
MERGE_MEMBERS
)
exec bash "$member" >> "${{member%.*}}.log" 2>&1
"""
