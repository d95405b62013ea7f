"""Members of a sweep → jobs: one each, or one job that makes them in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from merge_worker.errors import OutputError, WorkerError

from ..errors import LauncherError
from ..submission.prepare import JobChain, Request
from ..submission.submit import run_here_logged, submit, submit_job
from ..tracking.records import Record
from .definition import Member, Sweep, error_entries, group_lines
from .state import has_other_merge

SubmittedMember = tuple[Member, list[Record]]


class MemberFailed(LauncherError):
    """A member that ran here and failed; the others still run."""

    def __init__(self, code: int, out: str) -> None:
        super().__init__(f"{out}: exit code {code}; the reason is above and in its log")
        self.exit_code = code


def check_members(request: Request, sweep: Sweep, members: Sequence[Member]) -> list[str]:
    """Check every member before any is submitted; return warnings that the sweep did not have.

    Raises with every fault of all members.
    """
    faults: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    kinds: list[type[LauncherError] | type[WorkerError]] = []
    for member in members:
        findings = request.findings(member.merge)
        if has_other_merge(member) and not request.worker.overwrite:
            fault = f"{member.merge.out} holds another merge; --overwrite replaces it"
            findings.errors.append(OutputError(fault))
        for error in findings.errors:
            faults += [(member.name, line) for line in error_entries(error)]
            kinds.append(type(error))
        warnings += [(member.name, line) for line in findings.warnings]
    if faults:
        raise kinds[0]("\n  ".join(group_lines(sweep.path, len(members), faults)))
    grouped = group_lines(sweep.path, len(members), warnings)
    return [line for line in grouped if line not in sweep.warnings]


def submit_each(request: Request, members: Sequence[Member]) -> Iterator[SubmittedMember]:
    """Submit or run one job for each member. A LauncherError of a scheduler ends the iteration."""
    failures: list[MemberFailed] = []
    for member in members:
        try:
            yield member, _start(request, request.jobs(member.merge))
        except MemberFailed as error:
            failures.append(error)
    if failures:
        raise failures[0]


def submit_one_pass(request: Request, members: Sequence[Member]) -> Iterator[SubmittedMember]:
    """Submit one job that reads the inputs once; `--then` of each member is a job of its own."""
    merge, *_ = request.jobs(*(member.merge for member in members))
    started = _start(request, (merge,))
    failures: list[LauncherError] = []
    for member in members:
        later = request.jobs(member.merge)[1:] if started else ()
        yield member, [*started, *submit_after(request, started, later, failures)]
    if failures:
        raise failures[0]


def submit_after(
    request: Request, first: Sequence[Record], jobs: JobChain, failures: list[LauncherError]
) -> Iterator[Record]:
    """Submit jobs that wait for `first`, which is submitted already: failures are collected."""
    for job in jobs:
        try:
            yield submit_job(request, job, request.render(job), first)
        except LauncherError as error:
            failures.append(error)


def _start(request: Request, jobs: JobChain) -> list[Record]:
    if not request.runs_in_foreground:
        return submit(request, jobs)
    code = run_here_logged(request, jobs[0])
    if code != 0:
        raise MemberFailed(code, jobs[0].merge.out)
    return []
