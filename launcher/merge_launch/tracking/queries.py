"""Questions to a scheduler: few calls for many jobs, in the first format that it speaks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..backends.base import Scheduler, Status
from ..errors import ClusterError, LauncherError
from ..process import CommandFailed, answer

MOST_BYTES = 100_000
"""The length of the ids in one call: Linux takes 128 KiB in one argument."""


@dataclass
class Answer:
    """The answer of a scheduler: statuses by job id; missing jobs are unknown to it.

    `unmentioned` are jobs that it left out although it names those that it does not know.
    """

    statuses: dict[str, Status] = field(default_factory=dict)
    failure: LauncherError | None = None
    unmentioned: set[str] = field(default_factory=set)


class Questions:
    """Questions to one scheduler on one cluster. Unusable formats are not tried again."""

    def __init__(
        self, backend: Scheduler[Any], dialect: str, cluster: str, timeout_s: float
    ) -> None:
        self.backend, self.dialect, self.cluster = backend, dialect, cluster
        self.timeout_s = timeout_s
        self._formats = list(backend.formats)

    def ask(self, ids: Sequence[str]) -> Answer:
        """Query jobs. The first call without any answer is the last."""
        whole = Answer()
        for some in portions(ids):
            answer_of_some = self._from_sources(some)
            whole.statuses |= answer_of_some.statuses
            whole.unmentioned |= answer_of_some.unmentioned
            whole.failure = whole.failure or answer_of_some.failure
            if _is_unanswered(whole.failure):
                break
        return whole

    def _from_sources(self, ids: Sequence[str]) -> Answer:
        found = Answer()
        for source in self.backend.sources:
            missing = [job_id for job_id in ids if job_id not in found.statuses]
            # A scheduler that did not answer would not answer the next call either.
            if not missing or _is_unanswered(found.failure):
                break
            one = self._from_source(source, missing)
            found.failure = found.failure or one.failure
            found.statuses |= one.statuses
            found.unmentioned = one.unmentioned
        if len(found.statuses) == len(ids):
            found.failure = None
        return found

    def _from_source(self, source: str, ids: Sequence[str]) -> Answer:
        argv = self.backend.status_argv(f"{source} {self._formats[0]}".strip(), ids, self.dialect)
        if argv is None:
            return Answer()
        failure: LauncherError | None = None
        errors = ""
        try:
            text = answer(on_cluster(self.backend, argv, self.cluster), self.timeout_s)
        except ClusterError as error:
            # Known jobs are printed even if the exit status is that of an unknown one.
            text, errors = "", str(error)
            if isinstance(error, CommandFailed):
                text, errors = error.output, error.errors or errors
            failure = error
        message = "" if failure is None else str(failure)
        supported = not re.search(self.backend.unsupported_format_pattern, message)
        statuses = self.backend.parse_status(source, text) if supported else None
        if statuses is None and len(self._formats) > 1:
            del self._formats[0]
            return self._from_source(source, ids)
        reported = dict(self._of(ids, statuses or {}))
        known_failure = re.search(self.backend.unknown_job_pattern, message)
        found = Answer(reported, None if known_failure else failure)
        listed = self.backend.listed(text)
        if listed is None:
            return found
        named = {*listed, *re.findall(r"[\w.\[\]-]*[\w\]]", errors)}
        unnamed = [job_id for job_id in ids if job_id not in named]
        if unnamed and text.strip() and len(self._formats) > 1:
            # OpenPBS since 2023-12 prints only the first of several jobs as JSON (openpbs#2672).
            del self._formats[0]
            rest = self._from_source(source, unnamed)
            return Answer(reported | rest.statuses, found.failure or rest.failure, rest.unmentioned)
        if failure is None:
            found.unmentioned = set(unnamed)
        return found

    def _of(self, ids: Sequence[str], statuses: dict[str, Status]) -> Iterator[tuple[str, Status]]:
        for job_id in ids:
            # The array speaks for a member without a line of its own.
            status = statuses.get(job_id) or statuses.get(self.backend.array_of(job_id))
            if status is not None:
                yield job_id, status


def _is_unanswered(failure: LauncherError | None) -> bool:
    return isinstance(failure, ClusterError) and failure.unanswered


def portions(ids: Sequence[str]) -> Iterator[list[str]]:
    """Split ids into lists that are short enough for one command."""
    some: list[str] = []
    size = 0
    for job_id in ids:
        size += len(job_id) + 1
        if size > MOST_BYTES:
            yield some
            some, size = [], len(job_id) + 1
        some.append(job_id)
    if some:
        yield some


def on_cluster(backend: Scheduler[Any], argv: Sequence[str], cluster: str) -> list[str]:
    """Return a command that reaches the jobs of this cluster, "" for that of this machine."""
    elsewhere = cluster and cluster != backend.cluster()
    return [argv[0], *(backend.cluster_options(cluster) if elsewhere else ()), *argv[1:]]
