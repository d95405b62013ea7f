"""The backend of PBS: OpenPBS, PBS Pro and Torque. Behavior as observed with OpenPBS 23.06."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..arrays import Arrays, PbsArrays, TorqueArrays
from ..base import Run, Scheduler, Status, directive_faults, log_faults, seconds
from . import dialects
from .resources import PbsResources, refusals
from .status import parse_qstat, statuses

if TYPE_CHECKING:
    from ...job.job import Job


class Pbs(Scheduler[PbsResources]):
    """The backend of PBS."""

    name = "pbs"
    template = "pbs.sh.j2"
    help = "Submit to PBS (OpenPBS, PBS Pro, Torque)."
    resources = PbsResources
    suffix = "pbs"
    job_id_pattern = r"\d+(\[\d*\])?(\.[A-Za-z0-9][A-Za-z0-9._-]*)?"
    reply_pattern = r"(\d+(?:\[\])?(?:\.[A-Za-z0-9][A-Za-z0-9._-]*)?)"
    lost_answer_pattern = "(?i)timed out|timeout|end of file|premature end|connection reset"
    dependencies = True
    # A server without history answers the first with nothing, even for running jobs.
    sources = ("qstat -x -f", "qstat -f")
    # Old servers, and the qstat wrapper of Slurm, print text only.
    formats = ("-F json", "")
    unsupported_format_pattern = r"(?i)failed with status 2:|(?:invalid|unknown|illegal) option"
    already_ended_codes = (35,)
    unknown_job_pattern = (
        "(?i)unknown job|has finished|not configured to maintain|failed with status 153:"
    )

    def dialect(self, resources: PbsResources) -> str:
        return resources.dialect

    def faults(self, job: Job, resources: PbsResources) -> list[str]:
        return [
            *log_faults(job, r"[A-Za-z0-9_./@+=~ -]+", "letters, digits and ._/@+=~- only"),
            *dialects.faults(resources, job.name),
            *directive_faults(resources.directive, refusals),
        ]

    def run(self, resources: PbsResources) -> Run:
        launcher = dialects.DIALECTS[resources.dialect].launcher or "merge_on_nodes"
        mask = umask(resources)
        return Run(
            walltime_s=seconds(resources.walltime),
            gpus=resources.ngpus or 0,
            ranks=resources.nodes,
            launcher=launcher.format(nodes=resources.nodes) if resources.nodes > 1 else "",
            identity="\n".join(
                ([] if mask is None else [f"umask {mask}"])
                + ([] if "mpiexec" in launcher else ["export RANK=$3 WORLD_SIZE=$4"])
            ),
        )

    def context(self, job: Job, resources: PbsResources) -> dict[str, object]:
        dialect = dialects.DIALECTS[resources.dialect]
        if not job.runs_merge:
            resources = dataclasses.replace(resources, nodes=1)
        lines = [f"-l {line}" for line in dialects.resource_lines(resources, job)]
        if resources.walltime is not None:
            lines.append(f"-l walltime={resources.walltime}")
        charge = dialect.charge if resources.charge is None else f"-{resources.charge}"
        flags = {"-q": dialects.queue(resources), charge: resources.project, "-k": dialect.keep}
        lines += [f"{flag} {value}" for flag, value in flags.items() if value is not None]
        # Output that PBS itself copies at the end goes next to the log that the job writes.
        output = job.log if dialect.keep else Path(job.log).with_suffix(".end")
        return {
            "setup": dialect.setup,
            "umask": umask(resources),
            "log": None if dialect.keep else job.log,
            "by_pbsdsh": resources.nodes > 1 and not dialect.launcher,
            "directives": [
                f"-N {job.name}",
                *lines,
                "-j oe",
                f'-o "{output}"',
                # A second run of the same job resumes the merge, or finds it finished.
                "-r y",
                *resources.directive,
            ],
        }

    def arrays(self, resources: PbsResources) -> Arrays:
        return TorqueArrays() if resources.dialect == "torque" else PbsArrays()

    def array_of(self, job_id: str) -> str:
        return re.sub(r"\[\d+\]", "[]", job_id) if "[" in job_id else ""

    def user(self) -> str:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(os.getuid()).pw_name
        return ""

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        return ["qsub", *(["-W", f"depend=afterok:{after}"] if after else []), path]

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str] | None:
        # -x includes finished jobs; in Torque it selects XML, and -F is unknown there.
        if dialect == "torque" and "-x" in source:
            return None
        words = source.split()
        return [*(words[:2] if dialect == "torque" else words), *ids]

    def parse_status(self, source: str, text: str) -> dict[str, Status] | None:
        return statuses(text)

    def listed(self, text: str) -> Collection[str]:
        return parse_qstat(text) or ()

    def search_argv(self, name: str) -> list[str] | None:
        return ["qselect", "-u", self.user(), "-N", name] if self.user() else None

    def parse_search(self, text: str, script: str) -> list[str]:
        return [line for line in text.split() if re.fullmatch(self.job_id_pattern, line)]

    def cancel_argv(self, ids: Sequence[str]) -> list[str]:
        return ["qdel", "--", *ids]


def umask(resources: PbsResources) -> str | None:
    """Return the umask of this process, or None if a directive sets one."""
    if any("umask=" in line for line in resources.directive):
        return None
    mask = os.umask(0)
    os.umask(mask)
    return f"{mask:04o}"


BACKEND = Pbs()
