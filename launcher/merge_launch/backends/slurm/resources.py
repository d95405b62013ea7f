"""The options of Slurm, and checks of the directives that users add."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from merge_worker.units import parse_slurm_time

from ...settings.options import option
from ..base import TOKEN, Resources, directive_option

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
        "GPUs of each node",
        "N",
        r"([A-Za-z][A-Za-z0-9_.-]*:)?\d+",
        "a number, or TYPE:NUMBER",
    )
    cpus: int | None = option(None, "CPU cores of each node", "N", minimum=1)
    mem: str | None = option(
        None,
        "memory of each node (--memory bounds the worker's buffers)",
        "80G",
        # A number alone would be megabytes; 0 is all memory of the node.
        r"0|\d+[KMGTkmgt]",
        "a whole number with K, M, G or T, such as 80G",
    )
    time: str | None = option(
        None,
        "time limit",
        "12:00:00",
        r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
        "minutes, HH:MM:SS or D-HH:MM:SS",
    )
    partition: str | None = option(
        None, "partition", "NAME", f"{TOKEN}(,{TOKEN})*", "names of partitions"
    )
    account: str | None = option(None, "account to charge", "NAME", TOKEN, "the name of an account")
    nodes: int = option(1, "nodes that share the merge", "N", minimum=1)
    requeue: int = option(10, "how often a job may requeue itself at its time limit", "N")
    directive: tuple[str, ...] = directive_option("#SBATCH", "--constraint=a100")


def limit_s(time: str | None) -> int | None:
    """Return the seconds of `--time`, or None without a limit, which Slurm writes as 0."""
    return parse_slurm_time(time or "0") or None


def refusals(line: str) -> Iterator[str]:
    """Yield the reasons against one --directive."""
    words = shlex.split(line, comments=True)
    for name in (word.partition("=")[0] for word in words if word.startswith("-")):
        for (long, short), instead in RESERVED.items():
            # sbatch accepts every unambiguous prefix of a long option.
            is_long = name == f"--{long}" or (len(name) > 3 and f"--{long}".startswith(name))
            if is_long or (short and name.startswith(f"-{short}")):
                yield f"{name} is reserved; {instead}"
                break
