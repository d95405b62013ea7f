"""Slurm. Behaviour as observed with 22.05."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.options import Shape, option
from worker.units import parse_slurm_time

from . import _slurm_words as words
from ._arrays import Arrays, SlurmArrays
from ._base import DIRECTIVE, Resources, Run, Scheduler, Status, log_faults

if TYPE_CHECKING:
    from launcher.job import Job

TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
WARNING_S = 60
"""Before the limit. Slurm may be a minute early, so that jobs of minutes would get it at once."""
WARNED_FROM_S = 15 * 60

# What the job's text and what follows it rely on, and what to do instead.
ONE_WORKER = "each node runs one worker, which drives all of its GPUs"
RESERVED = {
    ("array", "a"): "merge-launch sweep SWEEP.yml slurm --array makes one",
    ("chdir", "D"): "the job goes to the current folder by itself",
    ("error", "e"): "the log holds both",
    ("export", None): "name variables with --env",
    ("job-name", "J"): "use --name",
    ("no-requeue", None): "use --requeue 0",
    ("nodes", "N"): "use --nodes",
    ("ntasks", "n"): ONE_WORKER,
    ("ntasks-per-node", None): ONE_WORKER,
    ("open-mode", None): "a job that comes back goes on in its log",
    ("output", "o"): "the log is beside OUT",
    ("requeue", None): "use --requeue N",
    ("signal", None): "the worker is told before the limit",
    ("test-only", None): "use --dry-run",
    ("time", "t"): "use --time",
    ("wait", "W"): "use --follow",
    ("wrap", None): "the job has its script",
}


@dataclass(frozen=True)
class SlurmResources(Resources):
    gpus: str | None = option(
        None,
        Shape(
            "GPUs, of each node",
            metavar="N",
            pattern=r"([A-Za-z][A-Za-z0-9_.-]*:)?\d+",
            form="a number, or TYPE:NUMBER",
        ),
    )
    cpus: int | None = option(None, Shape("CPU cores, of each node", metavar="N", minimum=1))
    mem: str | None = option(
        None,
        Shape(
            "memory of each node (--memory bounds the worker's buffers)",
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
    nodes: int = option(1, Shape("nodes that share the merge", metavar="N", minimum=1))
    requeue: int = option(
        10,
        Shape(
            "times that a job may go back into the queue by itself when its time is over (10)",
            metavar="N",
        ),
    )
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
    # Of 4 MiB (max_script_size); beyond it sbatch speaks of a path that is too long.
    longest_text = 4_000_000
    # The second knows jobs for months, where there is a database.
    sources = ("squeue", "sacct")
    unknown_words = "(?i)invalid job id|accounting storage is disabled"

    def faults(self, job: Job, resources: SlurmResources) -> list[str]:
        return [
            *log_faults(job),
            *(fault for line in resources.directive for fault in _directive_faults(line)),
        ]

    def run(self, resources: SlurmResources) -> Run:
        nodes = resources.nodes
        # srun does not take the cores over from the job.
        cores = "" if resources.cpus is None else f" --cpus-per-task={resources.cpus}"
        launcher = f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1{cores} bash"
        return Run(
            walltime_s=limit_s(resources.time),
            ranks=nodes,
            launcher=launcher if nodes > 1 else "",
            # At SIGTERM srun kills what it runs; this one it hands on.
            signal="USR1" if nodes > 1 else "TERM",
        )

    def context(self, job: Job, resources: SlurmResources) -> dict[str, object]:
        nodes = resources.nodes if job.merges else 1
        limit = limit_s(resources.time)
        warned = job.merges and (limit is None or limit >= WARNED_FROM_S)
        wanted = {
            "cpus-per-task": resources.cpus,
            # --gpus needs another plugin than some sites have.
            "gres": None if resources.gpus is None else f"gpu:{resources.gpus}",
            "mem": None if resources.mem is None else resources.mem.upper(),
            "time": resources.time,
            "partition": resources.partition,
            "account": resources.account,
            # To the shell alone: without srun the worker would never see it.
            "signal": f"B:USR1@{WARNING_S}" if warned else None,
        }
        return {
            "requeue": resources.requeue,
            "warned": warned,
            "directives": [
                f"--job-name={job.name}",
                f"--nodes={nodes}",
                f"--ntasks={nodes}",
                *(["--ntasks-per-node=1"] if nodes > 1 else []),
                *(f"--{key}={value}" for key, value in wanted.items() if value is not None),
                f'--output="{job.log}"',
                # A requeued job goes on in the log of its first run.
                "--open-mode=append",
                "--requeue" if resources.requeue else "--no-requeue",
                *resources.directive,
            ],
        }

    def arrays(self, resources: SlurmResources) -> Arrays:
        return SlurmArrays()

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        # Without the second it would wait for ever for a job that has failed.
        waits = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
        return ["sbatch", "--parsable", *waits, path]

    def parse_submit(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        found = re.fullmatch(r"(\d+)(;\S+)?", lines[-1]) if lines else None
        return found[1] if found else None

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        jobs = f"--jobs={','.join(ids)}"
        if source == "squeue":
            # Without --array the waiting members of an array are one line.
            return [source, "--noheader", "--array", "--states=all", jobs, "--format=%i|%T|%r|%S"]
        form = ["--allocations", "--noheader", "--parsable2", "--array"]
        return [source, *form, jobs, "--format=JobID,State,ExitCode,Reason"]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        return words.of_squeue(text) if source == "squeue" else words.of_sacct(text)

    def why_argv(self, job_id: str, dialect: str) -> list[str] | None:
        return ["scontrol", "--oneliner", "show", "job", job_id]

    def parse_why(self, text: str) -> tuple[str, ...]:
        return words.of_scontrol(text)

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["scancel", job_id]


def limit_s(time: str | None) -> int | None:
    """Return the seconds of `--time`, or None if there is no limit, which Slurm writes as 0."""
    return parse_slurm_time(time or "0") or None


def _directive_faults(line: str) -> Iterator[str]:
    try:
        given = [word for word in shlex.split(line, comments=True) if word.startswith("-")]
    except ValueError as error:
        yield f"--directive '{line}': {str(error).lower()}"
        return
    for word in given:
        name = word.partition("=")[0]
        for (long, short), instead in RESERVED.items():
            # sbatch takes any beginning of a long option that fits only one.
            means = name == f"--{long}" or (len(name) > 3 and f"--{long}".startswith(name))
            if means or (short and re.match(f"-{short}", name)):
                yield f"--directive '{line}': {name} is not yours to set; {instead}"
                break


BACKEND = Slurm()
