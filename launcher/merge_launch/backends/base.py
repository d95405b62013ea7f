"""The interface of a backend.

Backends return data only: text, argument lists, states and reasons. `submission` and `tracking` run
the commands. A `Service` is the exception: its client library talks to the server itself.
"""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from merge_worker.messages import printable
from merge_worker.units import parse_duration

from ..settings.options import option
from .arrays import Arrays

if TYPE_CHECKING:
    from ..job.job import Job


class JobState(enum.Enum):
    """The state of a job, in words that all backends share."""

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
class Origin:
    """Name, user and time of submission of a job, as far as its scheduler reports them.

    Ids come again: after a new installation, and on another cluster.
    """

    name: str = ""
    user: str = ""
    submitted_s: float | None = None


@dataclass(frozen=True)
class Status:
    """The state of a job as its scheduler reports it.

    `detail` quotes the scheduler in one line. `reasons` are sentences for the command `why`, taken
    from the same answer.
    """

    state: JobState
    detail: str = ""
    reasons: tuple[str, ...] = ()
    origin: Origin = field(default=Origin(), compare=False)


def state_of_exit(code: int) -> JobState:
    """Return the state for an exit code of merge-worker."""
    return {0: JobState.DONE, 75: JobState.STOPPED}.get(code, JobState.FAILED)


@dataclass(frozen=True)
class Run:
    """The way a job starts its worker; `_worker.sh.j2` reads it.

    `gpus`: GPUs of each node that the job asks for.
    `patience`: how long a rank waits for those that start later; images may have to be fetched.
    `launcher`: shell words in front of `bash SCRIPT` that start it once on each of several nodes.
    `signal`: the signal that makes this launcher stop the workers cleanly.
    `identity`: shell lines of that script that set RANK and WORLD_SIZE, for launchers that set no
    variable known to `merge_worker.system.ranks`.
    """

    walltime_s: int | None = None
    gpus: int = 0
    ranks: int = 1
    patience: str = "10m"
    launcher: str = ""
    signal: str = "TERM"
    identity: str = ""

    @property
    def deadline_s(self) -> int | None:
        """Seconds from the job's start; a twentieth of the walltime is left for pending writes."""
        if self.walltime_s is None:
            return None
        margin = min(max(self.walltime_s // 20, 60), 600, self.walltime_s // 2)
        return self.walltime_s - margin


@dataclass(frozen=True)
class Resources:
    """The options of one backend; each backend derives a dataclass from it."""

    TITLE: ClassVar[str] = "scheduler"


R = TypeVar("R", bound=Resources)


class Backend(ABC, Generic[R]):
    """A place to run jobs. Each module has one instance, named BACKEND."""

    name: ClassVar[str]
    job_id_pattern: ClassVar[str]
    """Matches the ids of jobs and of members of arrays; they are arguments of commands."""
    template: ClassVar[str]
    help: ClassVar[str]
    dependencies: ClassVar[bool] = False
    """Whether a job can depend on another's success; if not, `--then` runs in the same job."""
    max_bytes: ClassVar[int | None] = None
    """The longest job that the backend takes, in bytes; None if unlimited."""
    resources: type[R]

    @abstractmethod
    def context(self, job: Job, resources: R) -> dict[str, object]:
        """Return the variables of the template, in addition to `job` and `run`."""

    def run(self, resources: R) -> Run:
        """Return the way the worker starts."""
        return Run()

    def faults(self, job: Job, resources: R) -> list[str]:
        """Return the mistakes because of which no job text can be rendered."""
        return []

    def obstacles(self, job: Job, resources: R) -> list[str]:
        """Return the mistakes that prevent submitting the job, but not rendering it."""
        return []

    def ignored_variables(self, variables: Mapping[str, str]) -> list[str]:
        """Return a line for each variable of the user that would overrule the job's text."""
        return []

    def python(self) -> str:
        """Return the default Python interpreter."""
        return "python3"

    def own_settings(self) -> tuple[str, Mapping[str, object]]:
        """Return a name and the values of a config file that other clients of the backend use."""
        return "", {}

    def site(self, resources: R) -> str | None:
        """Return the built-in site whose values apply where nothing else sets them."""
        return None

    def assumptions(self, job: Job, resources: R) -> list[str]:
        """Return what no option sets, with its source, such as `mount weka:b (from the path)`."""
        return []


@dataclass(frozen=True)
class Submitted:
    """A submitted job. `log` is a file or the address of a web page."""

    job_id: str
    log: str


class Service(Backend[R]):
    """A backend behind a client library. Calls raise ClusterError, quoting the service."""

    def submission_metadata(self, job: Job, resources: R) -> dict[str, str]:
        """Return the values `submit` takes with the text; the record keeps them for `retry`."""
        return {}

    @abstractmethod
    def submit(self, text: str, metadata: Mapping[str, str]) -> Submitted: ...

    @abstractmethod
    def statuses(self, ids: Sequence[str]) -> dict[str, Status]:
        """Return the status of each job; unknown jobs are left out."""

    @abstractmethod
    def log_lines(self, job_id: str, follow: bool) -> Iterator[str]:
        """Yield the log of all runs of the job; with `follow`, until the job has ended."""

    @abstractmethod
    def why(self, job_id: str) -> tuple[str, ...]:
        """Return sentences: why the job is pending, its last events, its final message."""

    @abstractmethod
    def cancel(self, job_id: str) -> None: ...


class Scheduler(Backend[R]):
    """A backend with a command to submit jobs, some to query them and one to cancel them."""

    suffix: ClassVar[str]
    reply_pattern: ClassVar[str]
    """Matches the line of the submitting command that holds the job id, which is group 1."""
    lost_answer_pattern: ClassVar[str] = "(?!)"
    """Matches errors of the submitting command after which the job may be there all the same."""
    sources: ClassVar[tuple[str, ...]] = ()
    """Commands that report jobs; a later one is queried for jobs missing from the earlier ones."""
    formats: ClassVar[tuple[str, ...]] = ("",)
    """Options that select the output format of a source, best first. When one is not supported or
    not readable, the next is tried."""
    unsupported_format_pattern: ClassVar[str] = "(?!)"
    """Matches the error of a source that does not support the requested format."""
    already_ended_codes: ClassVar[tuple[int, ...]] = ()
    """Exit statuses of `cancel_argv` for a job that had already ended."""
    unknown_job_pattern: ClassVar[str] = "(?!)"
    """Matches errors of a source that mean that it does not know some or all of the jobs."""
    status_if_forgotten: ClassVar[Status] = Status(JobState.UNKNOWN)
    """The status of a job that no source reports and that left no exit code."""

    def dialect(self, resources: R) -> str:
        """Return the variant of the scheduler; the record keeps it for `status_argv`."""
        return ""

    def arrays(self, resources: R) -> Arrays | None:
        """Return the job arrays of the scheduler, or None if it has none."""
        return None

    def array_of(self, job_id: str) -> str:
        """Return the id of the array whose member has this id, or "" for another job."""
        return ""

    def user(self) -> str:
        """Return this user as the scheduler reports the user of a job, or "" if it does not."""
        return ""

    def cluster(self) -> str:
        """Return the name of the cluster that the commands here reach.

        It is "" if that is unknown, or part of the ids.
        """
        return ""

    def parse_cluster(self, text: str) -> str:
        """Return the cluster in the output of the submitting command, or ""."""
        return ""

    def cluster_options(self, cluster: str) -> list[str]:
        """Return the options with which the commands here reach another cluster."""
        return []

    @abstractmethod
    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        """Return the command that submits the script at `path`.

        The job starts when the job `after` has succeeded; only backends with `dependencies` get it.
        """

    def parse_submit(self, text: str) -> str | None:
        """Return the job id in the output of the submitting command, or None.

        Wrappers of sites print lines of their own before and after it.
        """
        match = self.reply_line(text)
        return None if match is None else match[1]

    def reply_line(self, text: str) -> re.Match[str] | None:
        """Return the match of the last line with a job id."""
        matches = (re.fullmatch(self.reply_pattern, line.strip()) for line in text.splitlines())
        return next((match for match in reversed(list(matches)) if match), None)

    def search_argv(self, name: str) -> list[str] | None:
        """Return a command that lists the jobs of this user with a name, if there is one."""
        return None

    def parse_search(self, text: str, script: str) -> list[str]:
        """Return the ids in the output of `search_argv` of jobs that may run this script."""
        return []

    @abstractmethod
    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str] | None:
        """Return one command that reports many jobs of one dialect.

        `source` includes the options of a format. None if the dialect has no such source.
        """

    @abstractmethod
    def parse_status(self, source: str, text: str) -> dict[str, Status] | None:
        """Return statuses by job id, in the form of `parse_submit`; missing jobs are left out.

        The text may come from a failed call, which prints the jobs it found nevertheless. None if
        the text is not readable in this format.
        """

    def listed(self, text: str) -> Collection[str] | None:
        """Return the ids of all jobs in the output of a source, those without a status included.

        None if a source leaves out the jobs that it does not know. Otherwise it fails for them by
        name: a job is not forgotten merely because an answer leaves it out.
        """
        return None

    def why_argv(self, job_id: str, dialect: str) -> list[str] | None:
        """Return a command with more reasons than `parse_status` gives, if there is one."""
        return None

    def parse_why(self, text: str) -> tuple[str, ...]:
        """Return the reasons in the output of `why_argv`, as sentences."""
        return ()

    @abstractmethod
    def cancel_argv(self, ids: Sequence[str]) -> list[str]:
        """Return the command that cancels jobs."""


class LocalBackend(Scheduler[R]):
    """A backend that runs jobs on this machine: in the foreground, or detached with a log."""

    @abstractmethod
    def detached(self, resources: R) -> bool:
        """Return whether the job runs in the background."""

    @abstractmethod
    def run_argv(self, path: str) -> list[str]:
        """Return the command that runs the script at `path` in the foreground."""


TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
"""Matches the name of a queue, partition, project or account."""


def directive_option(prefix: str, example: str) -> Any:
    """Return the field of --directive, which adds lines to the directives of a job."""
    return option(
        (),
        f"one more {prefix} line (repeatable), such as '{example}'",
        "LINE",
        r"-[\x20-\x7e]+",
        "one line of plain characters that begins with '-'",
        accumulates=True,
    )


def directive_faults(lines: Iterable[str], reasons: Callable[[str], Iterable[str]]) -> list[str]:
    """Return a fault for each of the reasons against a --directive.

    `reasons` may raise ValueError for a line that the shell could not read.
    """
    faults: list[str] = []
    for line in lines:
        try:
            faults += [f"--directive '{line}': {reason}" for reason in reasons(line)]
        except ValueError as error:
            faults.append(f"--directive '{line}': {str(error).lower()}")
    return faults


def log_faults(job: Job, accepted: str, described: str) -> list[str]:
    """Return a fault if the path of the log has characters that a directive gives a meaning."""
    if re.fullmatch(accepted, job.log):
        return []
    return [
        f"'{printable(job.log)}': schedulers do not accept this path of the log; "
        f"choose an OUT in a folder named with {described}"
    ]


def seconds(duration: str | None) -> int | None:
    """Return a time limit in whole seconds, or None without one."""
    return None if duration is None else int(parse_duration(duration))
