"""What a backend answers: text, argument lists, states. Acting on them is for `submit`."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from worker.errors import printable

if TYPE_CHECKING:
    from launcher.job import Job


class JobState(enum.Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped, resumable"
    UNKNOWN = "unknown"

    @property
    def over(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.UNKNOWN)


@dataclass(frozen=True)
class Status:
    """What a scheduler says about a job; `detail` is in its own words."""

    state: JobState
    detail: str = ""


def state_of_exit(code: int) -> JobState:
    """By the exit codes that merge-worker promises."""
    return {0: JobState.DONE, 75: JobState.STOPPED}.get(code, JobState.FAILED)


@dataclass(frozen=True)
class Resources:
    """Base of a backend's own options."""


R = TypeVar("R", bound=Resources)


class Backend(ABC, Generic[R]):
    """A place to run. One instance in each module, named BACKEND."""

    name: ClassVar[str]
    template: ClassVar[str]
    help: ClassVar[str]
    resources: type[R]

    @abstractmethod
    def context(self, job: Job, resources: R) -> dict[str, object]:
        """What the template needs beside the job."""

    def faults(self, job: Job, resources: R) -> list[str]:
        """Why no job text can be made."""
        return []

    def obstacles(self, job: Job, resources: R) -> list[str]:
        """Why the job cannot be submitted, though its text can be shown."""
        return []

    def python(self) -> str:
        """The interpreter where the user names none."""
        return "python3"


class Here(Backend[R]):
    """A backend that is this machine."""

    @abstractmethod
    def run_argv(self, path: str) -> list[str]: ...


@dataclass(frozen=True)
class Submitted:
    """What a user needs to know of a job that is on its way."""

    job_id: str
    log: str
    follow: list[str]
    cancel: list[str]


class Service(Backend[R]):
    """A backend behind a client library."""

    @abstractmethod
    def submit(self, job: Job, resources: R, text: str) -> Submitted: ...


class Scheduler(Backend[R]):
    """A backend with a command to submit, one to ask and one to cancel."""

    suffix: ClassVar[str]

    def dialect(self, resources: R) -> str:
        """What `status_argv` has to know of the way the job was submitted."""
        return ""

    @abstractmethod
    def submit_argv(self, path: str) -> list[str]: ...

    @abstractmethod
    def parse_submit(self, text: str) -> str | None:
        """The job id, or None when the answer holds none."""

    @abstractmethod
    def status_argv(self, job_id: str, dialect: str) -> list[str]: ...

    @abstractmethod
    def parse_status(self, text: str, job_id: str) -> Status | None:
        """None when the answer does not speak of the job."""

    @abstractmethod
    def cancel_argv(self, job_id: str) -> list[str]: ...


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


def node_faults(flag: str, count: int) -> list[str]:
    if count == 1:
        return []
    return [f"{flag} {count}: a merge runs on one node; leave it out"]
