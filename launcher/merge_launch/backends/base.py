"""What a backend answers: text, argument lists, states, reasons. Acting on them is for `submit` and
`follow`, save for a `Service`, whose client library acts by itself."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from merge_worker.messages import printable
from merge_worker.units import parse_duration

from .arrays import Arrays

if TYPE_CHECKING:
    from ..job.job import Job


class JobState(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped, resumable"
    UNKNOWN = "unknown"

    @property
    def has_ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.UNKNOWN)


@dataclass(frozen=True)
class Status:
    """What a scheduler says about a job: `detail` in its own words, in one line; `reasons` are
    sentences for `why`, of what it said in the same answer."""

    state: JobState
    detail: str = ""
    reasons: tuple[str, ...] = ()


def state_of_exit(code: int) -> JobState:
    """By the exit codes that merge-worker promises."""
    return {0: JobState.DONE, 75: JobState.STOPPED}.get(code, JobState.FAILED)


@dataclass(frozen=True)
class Run:
    """How a job starts its worker; `_worker.sh.j2` reads it.

    `launcher`: shell words in front of `bash SCRIPT` that start it once on each of several nodes.
    `signal`: what asks that launcher to stop the workers in good order.
    `identity`: a shell line of that script that sets RANK and WORLD_SIZE where the launcher sets
    nothing that `worker.ranks` knows.
    """

    walltime_s: int | None = None
    ranks: int = 1
    launcher: str = ""
    signal: str = "TERM"
    identity: str = ""

    @property
    def deadline_s(self) -> int | None:
        """From the job's start: a twentieth of the walltime is left to write what is in flight."""
        if self.walltime_s is None:
            return None
        margin = min(max(self.walltime_s // 20, 60), 600, self.walltime_s // 2)
        return self.walltime_s - margin


@dataclass(frozen=True)
class Resources:
    """Base of a backend's own options."""


R = TypeVar("R", bound=Resources)


class Backend(ABC, Generic[R]):
    """A place to run. One instance in each module, named BACKEND."""

    name: ClassVar[str]
    template: ClassVar[str]
    help: ClassVar[str]
    dependencies: ClassVar[bool] = False
    """Whether one job can wait for another's success; else `--then` runs in the same job."""
    resources: type[R]

    @abstractmethod
    def context(self, job: Job, resources: R) -> dict[str, object]:
        """What the template needs beside `job` and `run`."""

    def run(self, resources: R) -> Run:
        return Run()

    def faults(self, job: Job, resources: R) -> list[str]:
        """Why no job text can be made."""
        return []

    def obstacles(self, job: Job, resources: R) -> list[str]:
        """Why the job cannot be submitted, though its text can be shown."""
        return []

    max_bytes: ClassVar[int | None] = None
    """Bytes of a job."""

    def python(self) -> str:
        """The interpreter where the user names none."""
        return "python3"


@dataclass(frozen=True)
class Submitted:
    """`log` is a file, or an address for people."""

    job_id: str
    log: str


class Service(Backend[R]):
    """A backend behind a client library. Every call raises ClusterError in the service's words."""

    def submission_metadata(self, job: Job, resources: R) -> dict[str, str]:
        """What `submit` needs beside the text, kept with the record so that `retry` has it."""
        return {}

    @abstractmethod
    def submit(self, text: str, ticket: Mapping[str, str]) -> Submitted: ...

    @abstractmethod
    def statuses(self, ids: Sequence[str]) -> dict[str, Status]:
        """In one call where the service can; jobs that it does not know are left out."""

    @abstractmethod
    def log_lines(self, job_id: str, follow: bool) -> Iterator[str]:
        """The log of all runs of the job, line by line; with `follow` until the job is over."""

    @abstractmethod
    def why(self, job_id: str) -> tuple[str, ...]:
        """Sentences: why it waits, the last events, what it said at its end."""

    @abstractmethod
    def cancel(self, job_id: str) -> None: ...


class Scheduler(Backend[R]):
    """A backend with a command to submit, some to ask and one to cancel."""

    suffix: ClassVar[str]
    sources: ClassVar[tuple[str, ...]] = ()
    """What knows of jobs; a later one is asked for those that the earlier left out."""
    formats: ClassVar[tuple[str, ...]] = ("",)
    """Words behind a source: the forms of its answer, the best first. Once one cannot be had or
    read, the next is asked for."""
    unsupported_format_pattern: ClassVar[str] = "(?!)"
    """A pattern of errors of a source that cannot print the form."""
    already_ended_codes: ClassVar[tuple[int, ...]] = ()
    """Exit statuses of `cancel_argv` that say that the job was over already."""
    unknown_job_pattern: ClassVar[str] = "(?!)"
    """A pattern of errors of a source that are answers: it does not know (all of) the jobs."""
    status_if_forgotten: ClassVar[Status] = Status(JobState.UNKNOWN)
    """Of a job that no source speaks of and that left no exit code."""

    def dialect(self, resources: R) -> str:
        """What `status_argv` has to know of the way the job was submitted."""
        return ""

    def arrays(self, resources: R) -> Arrays | None:
        return None

    @abstractmethod
    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        """`after`: a job whose success the new one waits for; asked of backends with
        `dependencies` only."""

    @abstractmethod
    def parse_submit(self, text: str) -> str | None:
        """The job id, or None when the answer holds none."""

    @abstractmethod
    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str] | None:
        """One call for many jobs of one dialect, of a source with one of its forms; None where the
        dialect has no such source."""

    @abstractmethod
    def parse_status(self, source: str, text: str) -> dict[str, Status] | None:
        """By job id as `parse_submit` gave it; jobs that the answer does not speak of are left out.
        The text is also that of a call that failed: found jobs are printed all the same. None where
        this form of the answer cannot be read."""

    def why_argv(self, job_id: str, dialect: str) -> list[str] | None:
        """One more question for `why`, where the reasons of `parse_status` are not all."""
        return None

    def parse_why(self, text: str) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def cancel_argv(self, job_id: str) -> list[str]: ...


class LocalBackend(Scheduler[R]):
    """A backend that is this machine: in the foreground, or detached with states and logs."""

    @abstractmethod
    def detached(self, resources: R) -> bool: ...

    @abstractmethod
    def run_argv(self, path: str) -> list[str]: ...


# What may stand in a directive: it is not shell, and each scheduler gives other signs a meaning.
PATH_IN_DIRECTIVE = r"[A-Za-z0-9_./@+=~ -]+"
DIRECTIVE = r"-[\x20-\x7e]+"


def log_faults(job: Job) -> list[str]:
    if re.fullmatch(PATH_IN_DIRECTIVE, job.log):
        return []
    return [
        f"the log beside OUT would be '{printable(job.log)}', which no scheduler takes; "
        f"choose an OUT in a folder named with letters, digits and ._/@+=~- only"
    ]


def seconds(duration: str | None) -> int | None:
    """Return a time limit in whole seconds, or None without one."""
    return None if duration is None else int(parse_duration(duration))
