"""PBS: OpenPBS, PBS Pro and Torque. Behaviour as observed with OpenPBS 23.06."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.options import Shape, option

from ._base import (
    DIRECTIVE,
    JobState,
    Resources,
    Scheduler,
    Status,
    log_faults,
    node_faults,
    state_of_exit,
)

if TYPE_CHECKING:
    from launcher.job import Job

TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
MEMORY = r"\d+([kmgt]b?|b)"


@dataclass(frozen=True)
class PbsResources(Resources):
    ngpus: int | None = option(None, Shape("GPUs", metavar="N"))
    ncpus: int | None = option(None, Shape("CPU cores", metavar="N", minimum=1))
    mem: str | None = option(
        None,
        Shape(
            "memory of the job (--memory bounds the worker's buffers)",
            metavar="80g",
            pattern=f"(?i){MEMORY}",
            form="a whole number with kb, mb, gb or tb, such as 80gb",
        ),
    )
    walltime: str | None = option(
        None,
        Shape(
            "time limit",
            metavar="12:00:00",
            pattern=r"\d+(:\d\d){0,2}",
            form="HH:MM:SS, MM:SS or seconds",
        ),
    )
    queue: str | None = option(
        None, Shape("queue", metavar="NAME", pattern=TOKEN, form="the name of a queue")
    )
    project: str | None = option(
        None,
        Shape("what is charged", metavar="NAME", pattern=TOKEN, form="the name of a project"),
    )
    nodes: int = option(1, Shape("nodes", metavar="N", minimum=1))
    dialect: str = option(
        "openpbs",
        Shape(
            "openpbs (PBS Pro, select=) or torque (nodes=:ppn=)",
            pattern="openpbs|torque",
            form="openpbs or torque",
        ),
    )
    directive: tuple[str, ...] = option(
        (),
        Shape(
            "one more #PBS line (repeatable), such as '-l place=scatter'",
            metavar="LINE",
            pattern=DIRECTIVE,
            form="one line of plain characters that begins with '-'",
            adds_up=True,
        ),
    )


class Pbs(Scheduler[PbsResources]):
    name = "pbs"
    template = "pbs.sh.j2"
    help = "Submit to PBS (OpenPBS, PBS Pro, Torque)."
    resources = PbsResources
    suffix = "pbs"
    dependencies = True
    sources = ("qstat",)
    gone = (35,)
    unknown_words = "(?i)unknown job|has finished|not configured to maintain"

    def dialect(self, resources: PbsResources) -> str:
        return resources.dialect

    def faults(self, job: Job, resources: PbsResources) -> list[str]:
        found = log_faults(job) + node_faults("--nodes", resources.nodes)
        if resources.dialect == "torque" and len(job.name) > 15:
            found.append(f"--name {job.name}: Torque takes 15 characters at most")
        return found

    def context(self, job: Job, resources: PbsResources) -> dict[str, object]:
        lines = _torque(resources) if resources.dialect == "torque" else _openpbs(resources)
        if resources.walltime is not None:
            lines.append(f"-l walltime={resources.walltime}")
        if resources.queue is not None:
            lines.append(f"-q {resources.queue}")
        return {
            "directives": [
                f"-N {job.name}",
                *lines,
                "-j oe",
                f'-o "{job.log}"',
                # A second run of the same job finds a finished merge, or resumes it.
                "-r y",
                *resources.directive,
            ]
        }

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        return ["qsub", *(["-W", f"depend=afterok:{after}"] if after else []), path]

    def parse_submit(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or not re.fullmatch(r"\d+(\[\])?(\.\S+)?", lines[-1]):
            return None
        return lines[-1]

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        # -x asks for finished jobs as well; in Torque it asks for XML.
        history = [] if dialect == "torque" else ["-x"]
        return [source, *history, "-f", *ids]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        # Long values go on in lines that begin with a tab.
        joined = text.replace("\n\t", "")
        records = re.split(r"^Job Id: *(\S+)\s*$", joined, flags=re.MULTILINE)[1:]
        return {
            job_id: _status(dict(re.findall(r"^ +([\w.]+) = (.*)$", fields, re.MULTILINE)))
            for job_id, fields in zip(records[::2], records[1::2], strict=True)
        }

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["qdel", job_id]


def _status(fields: dict[str, str]) -> Status:
    code = fields.get("job_state", "?")
    comment = fields.get("comment", "")
    ended = fields.get("Exit_status", fields.get("exit_status"))
    if code in "FCX":
        return _ended(ended, comment)
    states = dict.fromkeys("QHWTM", JobState.QUEUED) | dict.fromkeys("RESUB", JobState.RUNNING)
    detail = f"{code}: {comment}" if comment else code
    return Status(states.get(code, JobState.UNKNOWN), detail)


def _openpbs(resources: PbsResources) -> list[str]:
    wanted = {"ncpus": resources.ncpus, "ngpus": resources.ngpus, "mem": _unit(resources.mem)}
    parts = [f"{key}={value}" for key, value in wanted.items() if value is not None]
    lines = [f"-l select=1:{':'.join(parts)}"] if parts else []
    # Written to the log's own path while the job runs; without it the log appears at the end.
    lines.append("-k oed")
    return lines + ([f"-P {resources.project}"] if resources.project is not None else [])


def _torque(resources: PbsResources) -> list[str]:
    cores = f":ppn={resources.ncpus}" if resources.ncpus is not None else ""
    gpus = f":gpus={resources.ngpus}" if resources.ngpus else ""
    lines = [f"-l nodes=1{cores}{gpus}"]
    if resources.mem is not None:
        lines.append(f"-l mem={_unit(resources.mem)}")
    # -P names a proxy user in Torque.
    return lines + ([f"-A {resources.project}"] if resources.project is not None else [])


def _unit(mem: str | None) -> str | None:
    """Torque knows no bare 'g'."""
    return None if mem is None else f"{mem.lower().rstrip('b')}b"


def _ended(exit_status: str | None, comment: str) -> Status:
    """Above 256 the batch system killed it, below 0 it did so for a reason of its own."""
    if exit_status is None or not re.fullmatch(r"-?\d+", exit_status):
        return Status(JobState.CANCELLED, comment or "it ended without having run")
    code = int(exit_status)
    detail = f"exit status {code}" + (f": {comment}" if comment else "")
    if code in (256 + 9, 256 + 15):
        return Status(JobState.CANCELLED, detail)
    if code in (-29, -11, -20):
        return Status(JobState.STOPPED, detail)
    return Status(state_of_exit(code), detail)


BACKEND = Pbs()
