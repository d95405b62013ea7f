"""PBS: OpenPBS, PBS Pro and Torque. Behaviour as observed with OpenPBS 23.06."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.options import Shape, option

from . import _pbs_dialects
from ._arrays import Arrays, PbsArrays, TorqueArrays
from ._base import DIRECTIVE, Resources, Run, Scheduler, Status, log_faults, seconds
from ._pbs_words import statuses

if TYPE_CHECKING:
    from launcher.job import Job

DIALECTS = tuple(_pbs_dialects.DIALECTS)
TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
MEMORY = r"\d+([kmgt]b?|b)"


@dataclass(frozen=True)
class PbsResources(Resources):
    ngpus: int | None = option(None, Shape("GPUs of a node", metavar="N"))
    ncpus: int | None = option(None, Shape("CPU cores of a node", metavar="N", minimum=1))
    mem: str | None = option(
        None,
        Shape(
            "memory of a node (--memory bounds the worker's buffers)",
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
    charge: str | None = option(
        None,
        Shape(
            "the option of qsub that names what is charged: A or P (as the dialect has it)",
            pattern="[AP]",
            form="A or P",
        ),
    )
    nodes: int = option(1, Shape("nodes that share the merge", metavar="N", minimum=1))
    dialect: str = option(
        "openpbs",
        Shape(
            "how the site writes resources: openpbs (PBS Pro too), torque, gadi, polaris, abci, "
            "or generic (by --resource alone)",
            pattern="|".join(DIALECTS),
            form=", ".join(DIALECTS[:-1]) + f" or {DIALECTS[-1]}",
        ),
    )
    resource: tuple[str, ...] = option(
        (),
        Shape(
            "one more value of -l (repeatable), such as 'storage=gdata/ab12' or 'place=scatter'",
            metavar="VALUE",
            pattern=r"[A-Za-z][\x21\x24-\x7e]*",
            form="a value of -l without blanks, such as place=scatter",
            adds_up=True,
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
    # A server without history answers the first with nothing at all, also of jobs that run.
    sources = ("qstat -x -f", "qstat -f")
    # Old servers, and the qstat that stands in front of Slurm, print text only.
    forms = ("-F json", "")
    formless_words = r"(?i)failed with status 2:|(?:invalid|unknown|illegal) option"
    gone = (35,)
    unknown_words = (
        "(?i)unknown job|has finished|not configured to maintain|failed with status 153:"
    )

    def dialect(self, resources: PbsResources) -> str:
        return resources.dialect

    def faults(self, job: Job, resources: PbsResources) -> list[str]:
        found = log_faults(job) + _pbs_dialects.faults(resources, job.name)
        return found + [f for line in resources.directive for f in directive_faults(line)]

    def run(self, resources: PbsResources) -> Run:
        launcher = _pbs_dialects.DIALECTS[resources.dialect].launcher or "merge_on_nodes"
        mask = umask(resources)
        return Run(
            walltime_s=seconds(resources.walltime),
            ranks=resources.nodes,
            launcher=launcher.format(nodes=resources.nodes) if resources.nodes > 1 else "",
            identity="\n".join(
                ([] if mask is None else [f"umask {mask}"])
                + ([] if "mpiexec" in launcher else ["export RANK=$3 WORLD_SIZE=$4"])
            ),
        )

    def context(self, job: Job, resources: PbsResources) -> dict[str, object]:
        dialect = _pbs_dialects.DIALECTS[resources.dialect]
        if not job.merges:
            resources = dataclasses.replace(resources, nodes=1)
        lines = [f"-l {line}" for line in _pbs_dialects.resource_lines(resources, job)]
        if resources.walltime is not None:
            lines.append(f"-l walltime={resources.walltime}")
        queue = _pbs_dialects.queue(resources)
        if queue is not None:
            lines.append(f"-q {queue}")
        if resources.project is not None:
            charge = dialect.charge if resources.charge is None else f"-{resources.charge}"
            lines.append(f"{charge} {resources.project}")
        if dialect.keep is not None:
            lines.append(f"-k {dialect.keep}")
        # What PBS itself shows at the end goes beside the log that the job keeps.
        own_log = None if dialect.keep is not None else job.log
        output = job.log if own_log is None else str(Path(job.log).with_suffix(".end"))
        return {
            "setup": dialect.setup,
            "umask": umask(resources),
            "log": own_log,
            "by_pbsdsh": resources.nodes > 1 and not dialect.launcher,
            "directives": [
                f"-N {job.name}",
                *lines,
                "-j oe",
                f'-o "{output}"',
                # A second run of the same job finds a finished merge, or resumes it.
                "-r y",
                *resources.directive,
            ],
        }

    def arrays(self, resources: PbsResources) -> Arrays:
        return TorqueArrays() if resources.dialect == "torque" else PbsArrays()

    def submit_argv(self, path: str, after: str | None = None) -> list[str]:
        return ["qsub", *(["-W", f"depend=afterok:{after}"] if after else []), path]

    def parse_submit(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or not re.fullmatch(r"\d+(\[\])?(\.\S+)?", lines[-1]):
            return None
        return lines[-1]

    def status_argv(self, source: str, ids: Sequence[str], dialect: str) -> list[str] | None:
        # -x asks for finished jobs as well; in Torque it asks for XML, and -F is not known there.
        if dialect == "torque" and "-x" in source:
            return None
        words = source.split()
        return [*(words[:2] if dialect == "torque" else words), *ids]

    def parse_status(self, source: str, text: str) -> dict[str, Status] | None:
        return statuses(text)

    def cancel_argv(self, job_id: str) -> list[str]:
        return ["qdel", job_id]


def umask(resources: PbsResources) -> str | None:
    """That of this process, unless the job is asked to have another."""
    if any("umask=" in line for line in resources.directive):
        return None
    mask = os.umask(0)
    os.umask(mask)
    return f"{mask:04o}"


# Options that would take away what the rest relies on, each with what to say instead.
REFUSED = {
    "-z": "qsub would not say the job's id",
    "-I": "a job cannot be interactive",
    "-V": "it would carry all your variables, secrets too; name one with --env",
    "-v": "anybody can read it with qstat; name a variable with --env",
    "-N": "say --name",
    "-o": "the log stands beside OUT",
    "-e": "the log stands beside OUT",
    "-j": "the log stands beside OUT",
    "-k": "the dialect says where output goes",
    "-J": "merge-launch sweep SWEEP.yml pbs --array makes one",
    "-t": "merge-launch sweep SWEEP.yml pbs --array makes one",
    "-C": "the lines begin with #PBS",
    "-R": "the log would be removed",
    "-r": "a job that runs again resumes its output",
}


def directive_faults(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        return [f"--directive '{line}': {str(error).lower()}"]
    # A line may hold several options.
    found = [
        f"--directive '{line}': {reason}"
        for start, reason in REFUSED.items()
        if any(word.startswith(start) for word in words)
    ]
    for part, reason in (
        ("block=", "qsub would wait for the job's end"),
        ("sandbox=", "its folder is deleted with the job"),
    ):
        if "-W" in line and part in line:
            found.append(f"--directive '{line}': {reason}")
    if re.search(r"\s#", line):
        found.append(f"--directive '{line}': qsub takes no comment behind a directive")
    return found


BACKEND = Pbs()
