"""TODO"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from merge_worker.units import parse_slurm_time

from ...settings.options import OptionSpec, option
from ..base import DIRECTIVE, Resources

TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"

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
        OptionSpec(
            "GPUs, of each node",
            metavar="N",
            pattern=r"([A-Za-z][A-Za-z0-9_.-]*:)?\d+",
            expected="a number, or TYPE:NUMBER",
        ),
    )
    cpus: int | None = option(None, OptionSpec("CPU cores, of each node", metavar="N", minimum=1))
    mem: str | None = option(
        None,
        OptionSpec(
            "memory of each node (--memory bounds the worker's buffers)",
            metavar="80G",
            pattern=r"\d+[KMGTkmgt]?",
            expected="a whole number with K, M, G or T, such as 80G",
        ),
    )
    time: str | None = option(
        None,
        OptionSpec(
            "time limit",
            metavar="12:00:00",
            pattern=r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
            expected="minutes, HH:MM:SS or D-HH:MM:SS",
        ),
    )
    partition: str | None = option(
        None,
        OptionSpec(
            "partition",
            metavar="NAME",
            pattern=f"{TOKEN}(,{TOKEN})*",
            expected="names of partitions",
        ),
    )
    account: str | None = option(
        None,
        OptionSpec(
            "what is charged", metavar="NAME", pattern=TOKEN, expected="the name of an account"
        ),
    )
    nodes: int = option(1, OptionSpec("nodes that share the merge", metavar="N", minimum=1))
    requeue: int = option(
        10,
        OptionSpec(
            "times that a job may go back into the queue by itself when its time is over (10)",
            metavar="N",
        ),
    )
    directive: tuple[str, ...] = option(
        (),
        OptionSpec(
            "one more #SBATCH line (repeatable), such as '--constraint=a100'",
            metavar="LINE",
            pattern=DIRECTIVE,
            expected="one line of plain characters that begins with '-'",
            accumulates=True,
        ),
    )


def limit_s(time: str | None) -> int | None:
    """Return the seconds of `--time`, or None if there is no limit, which Slurm writes as 0."""
    return parse_slurm_time(time or "0") or None


def directive_faults(line: str) -> Iterator[str]:
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
