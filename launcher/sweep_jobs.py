"""Members of a sweep → jobs: one each, arrays of them, or one job that makes them in one pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import payload, preflight, render, submit
from .backends import Backend, Here, Scheduler, Service
from .backends._arrays import Arrays
from .command import answer
from .errors import ClusterError, LauncherError, UsageError
from .job import SHORT_NAME, Job
from .payload import Payload
from .preflight import Look
from .records import Record
from .settings import JobOptions, WorkerOptions
from .source import safe_name
from .sweep import Member, Sweep

ARRAY_LIMIT = 1000
"""Members of an array where the scheduler does not tell; the built-in limit of most."""
MOST = 1_000_000

Parts = list[tuple[Job, str]]
Started = tuple[Member, list[Record]]


class Ended(LauncherError):
    """A member that ran here and failed; the others still run."""

    def __init__(self, code: int, out: str) -> None:
        super().__init__(f"{out}: ended with code {code}; its words are above and in its log")
        self.exit_code = code


@dataclass(frozen=True)
class Order:
    """How every member is to run."""

    sweep: Sweep
    backend: Backend[Any]
    options: JobOptions
    worker: WorkerOptions
    resources: Any
    _payloads: dict[tuple[frozenset[str], ...], Payload] = field(default_factory=dict)
    _looks: dict[str, Look] = field(default_factory=dict)

    def look(self, member: Member) -> Look:
        """At its models, once."""
        if member.name not in self._looks:
            here = isinstance(self.backend, Here)
            self._looks[member.name] = preflight.look(member.merge, self.worker, everything=here)
        return self._looks[member.name]

    def job(self, *members: Member) -> Job:
        """One job; of several members in one pass."""
        texts = [member.merge.text for member in members]
        methods = frozenset().union(*(payload.methods_of(text) for text in texts))
        features = frozenset().union(*(self.look(member).features for member in members))
        carried = (methods, features)
        if carried not in self._payloads:
            self._payloads[carried] = payload.build(
                methods=methods, commands=self.options.commands, features=features
            )
        python = self.options.python or self.backend.python()
        first, *rest = (member.merge for member in members)
        made = Job(first, self.options, self.worker, self._payloads[carried], python)
        return dataclasses.replace(made, also=tuple(rest)) if rest else made

    def parts(self, *members: Member) -> Parts:
        whole = self.job(*members)
        jobs = whole.apart() if self.backend.dependencies else (whole,)
        return [(job, render.render(self.backend, job, self.resources)) for job in jobs]

    def faults(self, *members: Member) -> list[str]:
        try:
            job = self.job(*members)
        except LauncherError as error:
            return str(error).splitlines()
        found = self.backend.faults(job, self.resources)
        return [*found, *self.backend.obstacles(job, self.resources)]


def each(order: Order, members: Sequence[Member]) -> Iterator[Started]:
    """One job for each member. LauncherError ends it; what was told before is on its way."""
    failures: list[Ended] = []
    for member in members:
        try:
            yield member, _start(order, order.parts(member))
        except Ended as error:
            failures.append(error)
    if failures:
        raise failures[0]


def in_one_pass(order: Order, members: Sequence[Member]) -> Iterator[Started]:
    """One job that reads the inputs once; what follows each member is a job of its own."""
    whole = order.job(*members)
    merge, *_ = whole.apart() if order.backend.dependencies else (whole,)
    text = render.render(order.backend, merge, order.resources)
    first = _start(order, [(merge, text)])
    outs = tuple(member.merge.out for member in members[1:])
    first = [dataclasses.replace(record, also=outs) for record in first]
    failures: list[LauncherError] = []
    for member in members:
        later = order.parts(member)[1:] if first else []
        fresh = _after(order, first[0], later, failures) if later else []
        yield member, [*first, *fresh]
    if failures:
        raise failures[0]


def _after(
    order: Order, first: Record, parts: Parts, failures: list[LauncherError]
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


def _start(order: Order, parts: Parts) -> list[Record]:
    backend = order.backend
    job, text = parts[0]
    if isinstance(backend, Service):
        return [submit.submit_to_service(backend, job, text, order.resources)]
    if isinstance(backend, Here) and not backend.detached(order.resources):
        code = submit.run_here_logged(backend, job, text)
        if code != 0:
            raise Ended(code, job.merge.out)
        return []
    if not isinstance(backend, Scheduler):
        raise TypeError(f"nothing knows how to run a {type(backend).__name__}")
    return submit.submit(backend, parts, order.resources)


def arrays(
    order: Order, members: Sequence[Member], size: int | None, at_once: int | None
) -> Iterator[Started]:
    """Arrays of as many members as the site allows; each member's `--then` waits for it alone."""
    form = _form(order.backend)
    most = min(size or MOST, _limit(form))
    for number, start in enumerate(range(0, len(members), most)):
        yield from _array(order, members[start : start + most], at_once, number)


def _form(backend: Backend[Any]) -> Arrays:
    if not isinstance(backend, Scheduler) or backend.arrays is None:
        raise UsageError(f"{backend.name} has no arrays; leave --array out")
    return backend.arrays


def _limit(form: Arrays) -> int:
    argv = form.limit_argv()
    with contextlib.suppress(ClusterError):
        return (argv and form.parse_limit(answer(argv))) or ARRAY_LIMIT
    return ARRAY_LIMIT


def _array(
    order: Order, members: Sequence[Member], at_once: int | None, number: int
) -> Iterator[Started]:
    backend: Any = order.backend
    form = _form(backend)
    parts = [order.parts(member) for member in members]
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
        yield member, [record, *_after(order, record, own[1:], failures)]
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
