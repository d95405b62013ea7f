"""Job arrays: one submission of many jobs that differ by a number, from 0."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar


class Arrays(ABC):
    """The options with which a scheduler takes an array, and its names for the members."""

    index_variable: ClassVar[str]
    """The environment variable that holds the member's number in the job."""
    minimum_size: ClassVar[int] = 1
    """The fewest members that an array can have."""
    members_awaitable: ClassVar[bool] = True
    """Whether a job can depend on one member."""
    size_limit_argv: ClassVar[tuple[str, ...]]
    """The command that prints the site's limit of members."""
    size_limit_pattern: ClassVar[str]
    """Matches the line of the limit in its output; group 1 is the number."""

    @abstractmethod
    def options(self, count: int, at_once: int | None, name: str) -> list[str]:
        """Return options of the submitting command; they override directives in the script."""

    @abstractmethod
    def output(self, folder: str) -> list[str]:
        """Return options that put the scheduler's own output of each member into a folder."""

    @abstractmethod
    def member_id(self, array_id: str, number: int) -> str:
        """Return the job id of a member."""

    def parse_size_limit(self, text: str) -> int | None:
        """Return the limit in the output of `size_limit_argv`, or None if it is not there."""
        match = re.search(self.size_limit_pattern, text, re.MULTILINE)
        return int(match[1]) if match else None


class SlurmArrays(Arrays):
    """Arrays of Slurm: 12, and its members 12_0, 12_1 and so on."""

    index_variable = "SLURM_ARRAY_TASK_ID"
    size_limit_argv = ("scontrol", "show", "config")
    # The highest number must be below MaxArraySize; numbers begin at 0.
    size_limit_pattern = r"^MaxArraySize\s*=\s*(\d+)"

    def options(self, count: int, at_once: int | None, name: str) -> list[str]:
        return [f"--array=0-{count - 1}" + (f"%{at_once}" if at_once else ""), f"--job-name={name}"]

    def output(self, folder: str) -> list[str]:
        return [f"--output={folder}/%A_%a.out"]

    def member_id(self, array_id: str, number: int) -> str:
        return f"{array_id}_{number}"


class PbsArrays(Arrays):
    """Arrays of OpenPBS and PBS Pro: 12[].server, and its members 12[0].server and so on."""

    index_variable = "PBS_ARRAY_INDEX"
    minimum_size = 2
    members_awaitable = False
    size_limit_argv = ("qstat", "-B", "-f")
    size_limit_pattern = r"^ *max_(?:job_)?array_size = (\d+)"
    flag: ClassVar[str] = "-J"

    def options(self, count: int, at_once: int | None, name: str) -> list[str]:
        return [self.flag, f"0-{count - 1}" + (f"%{at_once}" if at_once else ""), "-N", name]

    def output(self, folder: str) -> list[str]:
        # PBS copies one file per member there at the end; members write their own logs.
        return ["-k", "n", "-o", f"{folder}/"]

    def member_id(self, array_id: str, number: int) -> str:
        head, dot, server = array_id.partition(".")
        return f"{head.removesuffix('[]')}[{number}]{dot}{server}"


class TorqueArrays(PbsArrays):
    """Arrays of Torque, which has its own option and variable."""

    index_variable = "PBS_ARRAYID"
    flag = "-t"
