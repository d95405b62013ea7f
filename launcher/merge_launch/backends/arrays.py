"""Job arrays: one submission of many jobs that differ by a number, from 0."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar


class Arrays(ABC):
    """What a scheduler needs to be told of an array, and how it names the members."""

    index_variable: ClassVar[str]
    """The variable of the job that holds the member's number."""
    minimum_size: ClassVar[int] = 1
    """Members of an array at least."""
    members_awaitable: ClassVar[bool] = True
    """Whether a job can wait for one member."""

    @abstractmethod
    def options(self, count: int, at_once: int | None, name: str) -> list[str]:
        """Words for the submitting command, which win over the directives of the script."""

    @abstractmethod
    def output(self, folder: str) -> list[str]:
        """Words that put what the scheduler itself says of members into a folder."""

    @abstractmethod
    def member_id(self, array_id: str, number: int) -> str:
        """The job id of a member."""

    def size_limit_argv(self) -> list[str] | None:
        """Asks how many members the site allows."""
        return None

    def parse_size_limit(self, text: str) -> int | None:
        return None


class SlurmArrays(Arrays):
    index_variable = "SLURM_ARRAY_TASK_ID"

    def options(self, count: int, at_once: int | None, name: str) -> list[str]:
        return [f"--array=0-{count - 1}" + (f"%{at_once}" if at_once else ""), f"--job-name={name}"]

    def output(self, folder: str) -> list[str]:
        return [f"--output={folder}/%A_%a.out"]

    def member_id(self, array_id: str, number: int) -> str:
        return f"{array_id}_{number}"

    def size_limit_argv(self) -> list[str] | None:
        return ["scontrol", "show", "config"]

    def parse_size_limit(self, text: str) -> int | None:
        """The greatest number must be below MaxArraySize, so that many members fit."""
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else None


class PbsArrays(Arrays):
    """OpenPBS and PBS Pro: 12[].server, its members 12[0].server and so on."""

    index_variable = "PBS_ARRAY_INDEX"
    minimum_size = 2
    members_awaitable = False
    flag: ClassVar[str] = "-J"

    def options(self, count: int, at_once: int | None, name: str) -> list[str]:
        many = f"%{at_once}" if at_once else ""
        return [self.flag, f"0-{count - 1}{many}", "-N", name]

    def output(self, folder: str) -> list[str]:
        # Copied there at the end, one file for each; the members write their logs themselves.
        return ["-k", "n", "-o", f"{folder}/"]

    def member_id(self, array_id: str, number: int) -> str:
        head, dot, server = array_id.partition(".")
        return f"{head.removesuffix('[]')}[{number}]{dot}{server}"

    def size_limit_argv(self) -> list[str]:
        return ["qstat", "-B", "-f"]

    def parse_size_limit(self, text: str) -> int | None:
        found = re.search(r"^ *max_(?:job_)?array_size = (\d+)", text, re.MULTILINE)
        return int(found[1]) if found else None


class TorqueArrays(PbsArrays):
    index_variable = "PBS_ARRAYID"
    flag = "-t"
