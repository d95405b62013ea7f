"""The options of Slurm, and checks of the directives that users add."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from merge_worker.units import parse_slurm_time

from ...settings.options import OptionSpec, option
from ..base import DIRECTIVE, Resources

TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"

ONE_WORKER = "each node runs one worker for all of its GPUs"
# Options that the job text relies on, each with the reason or the option to use instead.
RESERVED = {
    ("array", "a"): "use merge-launch sweep SWEEP.yml slurm --array",
    ("chdir", "D"): "the job runs in the current folder",
    ("error", "e"): "the log holds both streams",
    ("export", None): "use --env",
    ("job-name", "J"): "use --name",
    ("no-requeue", None): "use --requeue 0",
    ("nodes", "N"): "use --nodes",
    ("ntasks", "n"): ONE_WORKER,
    ("ntasks-per-node", None): ONE_WORKER,
    ("open-mode", None): "a requeued job appends to its log",
    ("output", "o"): "the log is next to OUT",
    ("requeue", None): "use --requeue N",
    ("signal", None): "the worker is signaled before the time limit",
    ("test-only", None): "use --dry-run",
    ("time", "t"): "use --time",
    ("wait", "W"): "use --follow",
    ("wrap", None): "the job has a script",
}


@dataclass(frozen=True)
class SlurmResources(Resources):
    """The options of the Slurm backend."""

    gpus: str | None = option(
        None,
        OptionSpec(
            "GPUs of each node",
            metavar="N",
            pattern=r"([A-Za-z][A-Za-z0-9_.-]*:)?\d+",
            expected="a number, or TYPE:NUMBER",
        ),
    )
    cpus: int | None = option(None, OptionSpec("CPU cores of each node", metavar="N", minimum=1))
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
            "account to charge", metavar="NAME", pattern=TOKEN, expected="the name of an account"
        ),
    )
    nodes: int = option(1, OptionSpec("nodes that share the merge", metavar="N", minimum=1))
    requeue: int = option(
        10,
        OptionSpec(
            "how often a job may requeue itself at its time limit (10)",
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
    """Return the seconds of `--time`, or None without a limit, which Slurm writes as 0."""
    return parse_slurm_time(time or "0") or None


def directive_faults(line: str) -> Iterator[str]:
    """Yield the mistakes in one --directive."""
    try:
        given = [word for word in shlex.split(line, comments=True) if word.startswith("-")]
    except ValueError as error:
        yield f"--directive '{line}': {str(error).lower()}"
        return
    for word in given:
        name = word.partition("=")[0]
        for (long, short), instead in RESERVED.items():
            # sbatch accepts every unambiguous prefix of a long option.
            is_long = name == f"--{long}" or (len(name) > 3 and f"--{long}".startswith(name))
            if is_long or (short and re.match(f"-{short}", name)):
                yield f"--directive '{line}': {name} is reserved; {instead}"
                break
