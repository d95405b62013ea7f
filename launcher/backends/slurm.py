"""Slurm. Behaviour as observed with 22.05."""

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
)

if TYPE_CHECKING:
    from launcher.job import Job

TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
STATES = {
    JobState.QUEUED: "PENDING CONFIGURING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT",
    JobState.RUNNING: "RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING",
    JobState.DONE: "COMPLETED",
    JobState.FAILED: "FAILED OUT_OF_MEMORY BOOT_FAIL",
    JobState.CANCELLED: "CANCELLED REVOKED",
    # By the limit, another job or the machine, not by itself: the same command resumes it.
    JobState.STOPPED: "TIMEOUT DEADLINE PREEMPTED NODE_FAIL",
}


@dataclass(frozen=True)
class SlurmResources(Resources):
    gpus: str | None = option(
        None,
        Shape(
            "GPUs",
            metavar="N",
            pattern=r"([A-Za-z][A-Za-z0-9_.-]*:)?\d+",
            form="a number, or TYPE:NUMBER",
        ),
    )
    cpus: int | None = option(None, Shape("CPU cores", metavar="N", minimum=1))
    mem: str | None = option(
        None,
        Shape(
            "memory of the job (--memory bounds the worker's buffers)",
            metavar="80G",
            pattern=r"\d+[KMGTkmgt]?",
            form="a whole number with K, M, G or T, such as 80G",
        ),
    )
    time: str | None = option(
        None,
        Shape(
            "time limit",
            metavar="12:00:00",
            pattern=r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
            form="minutes, HH:MM:SS or D-HH:MM:SS",
        ),
    )
    partition: str | None = option(
        None,
        Shape(
            "partition", metavar="NAME", pattern=f"{TOKEN}(,{TOKEN})*", form="names of partitions"
        ),
    )
    account: str | None = option(
        None, Shape("what is charged", metavar="NAME", pattern=TOKEN, form="the name of an account")
    )
    nodes: int = option(1, Shape("nodes", metavar="N", minimum=1))
    directive: tuple[str, ...] = option(
        (),
        Shape(
            "one more #SBATCH line (repeatable), such as '--constraint=a100'",
            metavar="LINE",
            pattern=DIRECTIVE,
            form="one line of plain characters that begins with '-'",
            adds_up=True,
        ),
    )


class Slurm(Scheduler[SlurmResources]):
    name = "slurm"
    template = "slurm.sh.j2"
    help = "Submit to Slurm."
    resources = SlurmResources
    suffix = "sbatch"
    dependencies = True
    sources = ("squeue",)
    unknown_words = "Invalid job id"

    def faults(self, job: Job, resources: SlurmResources) -> list[str]:
        return log_faults(job) + node_faults("--nodes", resources.nodes)

    def context(self, job: Job, resources: SlurmResources) -> dict[str, object]:
        wanted = {
            "cpus-per-task": resources.cpus,
            # --gpus needs another plugin than some sites have.
            "gres": None if resources.gpus is None else f"gpu:{resources.gpus}",
            "mem": None if resources.mem is None else resources.mem.upper(),
            "time": resources.time,
            "partition": resources.partition,
            "account": resources.account,
        }
        return {
            "directives": [
                f"--job-name={job.name}",
                "--nodes=1",
                "--ntasks=1",
                *(f"--{key}={value}" for key, value in wanted.items() if value is not None),
                f'--output="{job.log}"',
                # A requeued job goes on in the log of its first run.
                "--open-mode=append",
                *resources.directive,
            ]
        }

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        return ["sbatch", "--parsable", *([f"--dependency=afterok:{after}"] if after else []), path]

    def parse_submit(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        found = re.fullmatch(r"(\d+)(;\S+)?", lines[-1]) if lines else None
        return found[1] if found else None

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        jobs = ",".join(ids)
        return [source, "--noheader", "--states=all", f"--jobs={jobs}", "--format=%i|%T|%r"]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        found = {}
        for line in text.splitlines():
            job_id, _, rest = line.strip().partition("|")
            code, _, reason = rest.partition("|")
            plain = reason if reason not in ("", "None") else ""
            found[job_id] = Status(_state(code), f"{code}: {plain}" if plain else code)
        return found

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["scancel", job_id]


def _state(code: str) -> JobState:
    return next((s for s, codes in STATES.items() if code in codes.split()), JobState.UNKNOWN)


BACKEND = Slurm()
