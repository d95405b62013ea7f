"""Members of a sweep → jobs: one each, or one job that makes them in one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ..backends.base import LocalBackend, Scheduler, Service
from ..errors import LauncherError
from ..submission import render, submit
from ..submission.prepare import RenderedJob, SweepRequest
from ..tracking.records import Record
from .definition import Member

SubmittedMember = tuple[Member, list[Record]]


class MemberFailed(LauncherError):
    """A member that ran here and failed; the others still run."""

    def __init__(self, code: int, out: str) -> None:
        super().__init__(f"{out}: ended with code {code}; its words are above and in its log")
        self.exit_code = code


def each(order: SweepRequest, members: Sequence[Member]) -> Iterator[SubmittedMember]:
    """One job for each member. LauncherError ends it; what was told before is on its way."""
    failures: list[MemberFailed] = []
    for member in members:
        try:
            yield member, start(order, order.parts(member))
        except MemberFailed as error:
            failures.append(error)
    if failures:
        raise failures[0]


def in_one_pass(order: SweepRequest, members: Sequence[Member]) -> Iterator[SubmittedMember]:
    """One job that reads the inputs once; what follows each member is a job of its own."""
    whole = order.job(*members)
    merge, *_ = whole.split() if order.backend.dependencies else (whole,)
    text = render.render(order.backend, merge, order.resources)
    first = start(order, [(merge, text)])
    outs = tuple(member.merge.out for member in members[1:])
    first = [dataclasses.replace(record, also=outs) for record in first]
    failures: list[LauncherError] = []
    for member in members:
        later = order.parts(member)[1:] if first else []
        fresh = after(order, first[0], later, failures) if later else []
        yield member, [*first, *fresh]
    if failures:
        raise failures[0]


def after(
    order: SweepRequest, first: Record, parts: RenderedJob, failures: list[LauncherError]
) -> Iterator[Record]:
    """The merge is on its way by now: what cannot follow it is told at the end."""
    backend: Any = order.backend
    for job, text in parts:
        record = submit.unsent(backend, job, order.resources)
        record = dataclasses.replace(record, after=first.job_id)
        try:
            with submit.written(record, job, text):
                yield submit.hand_over(backend, record)
        except LauncherError as error:
            failures.append(error)


def start(order: SweepRequest, parts: RenderedJob) -> list[Record]:
    backend = order.backend
    job, text = parts[0]
    if isinstance(backend, Service):
        return [submit.submit_to_service(backend, job, text, order.resources)]
    if isinstance(backend, LocalBackend) and not backend.detached(order.resources):
        code = submit.run_here_logged(backend, job, text)
        if code != 0:
            raise MemberFailed(code, job.merge.out)
        return []
    if not isinstance(backend, Scheduler):
        raise TypeError(f"nothing knows how to run a {type(backend).__name__}")
    return submit.submit(backend, parts, order.resources)
