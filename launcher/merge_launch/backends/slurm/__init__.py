"""The backend of Slurm. Behavior as observed with 22.05."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...process import OVERRULING
from ..arrays import Arrays, SlurmArrays
from ..base import Run, Scheduler, Status, directive_faults, log_faults
from . import status
from .resources import SlurmResources, limit_s, refusals

if TYPE_CHECKING:
    from ...job.job import Job

WARNING_S = 60
"""How long before the time limit Slurm signals the job. Slurm may send it a minute early."""
WARNED_FROM_S = 15 * 60
"""Shorter jobs get no signal, since it could come at once."""


CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf")
"""Where Debian and Red Hat have it, and where a node without files gets it."""


class Slurm(Scheduler[SlurmResources]):
    """The backend of Slurm."""

    name = "slurm"
    template = "slurm.sh.j2"
    help = "Submit to Slurm."
    resources = SlurmResources
    suffix = "sbatch"
    job_id_pattern = r"\d+(_\d+)?"
    reply_pattern = r"(?:Submitted batch job )?(\d+)(?:(?:;| on cluster )([\w-]+))?"
    lost_answer_pattern = "(?i)timed out|zero bytes|message receive failure|connection reset"
    dependencies = True
    # The limit is 4 MiB (max_script_size); beyond it sbatch reports a path that is too long.
    max_bytes = 4_000_000
    # sacct knows jobs for months, where there is a database.
    sources = ("squeue", "sacct")
    unknown_job_pattern = "(?i)invalid job id|accounting storage is disabled"

    def faults(self, job: Job, resources: SlurmResources) -> list[str]:
        log = log_faults(job, r"[^\x00-\x1f\x7f\"\\%]+", 'characters other than " \\ and %')
        return [*log, *directive_faults(resources.directive, refusals)]

    def ignored_variables(self, variables: Mapping[str, str]) -> list[str]:
        return [
            f"{name}: ignored, since it would overrule the job's text; {instead}"
            for name, instead in OVERRULING.items()
            if variables.get(name)
        ]

    def run(self, resources: SlurmResources) -> Run:
        nodes = resources.nodes
        # srun does not inherit the number of cores from the job.
        cores = "" if resources.cpus is None else f" --cpus-per-task={resources.cpus}"
        launcher = f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1{cores} bash"
        return Run(
            walltime_s=limit_s(resources.time),
            gpus=int((resources.gpus or "0").rpartition(":")[2]),
            ranks=nodes,
            launcher=launcher if nodes > 1 else "",
            # At SIGTERM srun kills its tasks; it forwards USR1.
            signal="USR1" if nodes > 1 else "TERM",
            # Variables of another launcher may have been exported to this job.
            identity="export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS",
        )

    def context(self, job: Job, resources: SlurmResources) -> dict[str, object]:
        nodes = resources.nodes if job.runs_merge else 1
        limit = limit_s(resources.time)
        warned = job.runs_merge and (limit is None or limit >= WARNED_FROM_S)
        wanted = {
            "cpus-per-task": resources.cpus,
            # --gpus requires a plugin that some sites lack.
            "gres": None if resources.gpus is None else f"gpu:{resources.gpus}",
            "mem": None if resources.mem is None else resources.mem.upper(),
            "time": resources.time,
            "partition": resources.partition,
            "account": resources.account,
            # To the shell only, which forwards it: without srun the worker would not get it.
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
                # A requeued job appends to the log of its first run.
                "--open-mode=append",
                "--requeue" if resources.requeue else "--no-requeue",
                *resources.directive,
            ],
        }

    def arrays(self, resources: SlurmResources) -> Arrays:
        return SlurmArrays()

    def array_of(self, job_id: str) -> str:
        array, underscore, _ = job_id.partition("_")
        return array if underscore else ""

    def user(self) -> str:
        return str(os.getuid())

    def cluster(self) -> str:
        named = os.environ.get("SLURM_CLUSTERS", "")
        return named.lower() if re.fullmatch(r"[\w-]+", named) else cluster_name()

    def parse_cluster(self, text: str) -> str:
        match = self.reply_line(text)
        return (match[2] or "").lower() if match else ""

    def cluster_options(self, cluster: str) -> list[str]:
        return [f"--clusters={cluster}"]

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        # Without --kill-on-invalid-dep the job would stay pending after a failed dependency.
        dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
        return ["sbatch", "--parsable", *dependency, path]

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str]:
        jobs = f"--jobs={','.join(ids)}"
        if source == "squeue":
            # Without --array, all pending members of an array share one line.
            form = ["--noheader", "--array", "--states=all"]
            return [source, *form, jobs, f"--format={status.SQUEUE_FIELDS}"]
        # Before 23.02 sacct has no --array: members that wait share the line of their array.
        form = ["--allocations", "--noheader", "--parsable2"]
        return [source, *form, jobs, f"--format={status.SACCT_FIELDS}"]

    def parse_status(self, source: str, text: str) -> dict[str, Status]:
        return status.of_squeue(text) if source == "squeue" else status.of_sacct(text)

    def why_argv(self, job_id: str, dialect: str) -> list[str] | None:
        return ["scontrol", "--oneliner", "show", "job", job_id]

    def parse_why(self, text: str) -> tuple[str, ...]:
        return tuple(status.of_scontrol(text))

    def search_argv(self, name: str) -> list[str]:
        whose = [f"--user={self.user()}", f"--name={name}"]
        return ["squeue", "--noheader", "--states=all", *whose, "--format=%F|%o"]

    def parse_search(self, text: str, script: str) -> list[str]:
        rows = dict.fromkeys(tuple(line.strip().split("|", 1)) for line in text.splitlines())
        return [row[0] for row in rows if row[0].isdecimal() and row[1:] == (script,)]

    def cancel_argv(self, ids: Sequence[str]) -> list[str]:
        return ["scancel", "--", *ids]


def cluster_name() -> str:
    """Return the name of the cluster in the configuration of Slurm, or "" if it is not there."""
    for path in (os.environ.get("SLURM_CONF", ""), *CONFIGURATIONS):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = re.search(r"(?mi)^\s*ClusterName\s*=\s*([\w-]+)", Path(path).read_text())
            if found:
                return found[1].lower()
    return ""


BACKEND = Slurm()
