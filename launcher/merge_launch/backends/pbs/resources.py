"""The options of PBS, and checks of the directives that users add."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from ...settings.options import option
from ..base import TOKEN, Resources, directive_option

DIALECTS = ("openpbs", "torque", "gadi", "polaris", "abci", "generic")
"""The rows of `dialects.DIALECTS`, which a test compares with these names."""
MEMORY = r"\d+([kmgt]b?|b)"


@dataclass(frozen=True)
class PbsResources(Resources):
    """The options of the PBS backend."""

    ngpus: int | None = option(None, "GPUs of a node", "N")
    ncpus: int | None = option(None, "CPU cores of a node", "N", minimum=1)
    mem: str | None = option(
        None,
        "memory of a node (--memory bounds the worker's buffers)",
        "80g",
        f"(?i){MEMORY}",
        "a whole number with kb, mb, gb or tb, such as 80gb",
    )
    walltime: str | None = option(
        None, "time limit", "12:00:00", r"\d+(:\d\d){0,2}", "HH:MM:SS, MM:SS or seconds"
    )
    queue: str | None = option(None, "queue", "NAME", TOKEN, "the name of a queue")
    project: str | None = option(None, "project to charge", "NAME", TOKEN, "the name of a project")
    charge: str | None = option(
        None,
        "option of qsub that names the project, A or P; default: that of the dialect",
        pattern="[AP]",
        expected="A or P",
    )
    nodes: int = option(1, "nodes that share the merge", "N", minimum=1)
    dialect: str = option(
        "openpbs",
        "how the site writes resources: openpbs (PBS Pro too), torque, gadi, polaris, abci, "
        "or generic (by --resource alone)",
        pattern="|".join(DIALECTS),
        expected=", ".join(DIALECTS[:-1]) + f" or {DIALECTS[-1]}",
    )
    resource: tuple[str, ...] = option(
        (),
        "one more value of -l (repeatable), such as 'storage=gdata/ab12' or 'place=scatter'",
        "VALUE",
        r"[A-Za-z][\x21\x24-\x7e]*",
        "a value of -l without blanks, such as place=scatter",
        accumulates=True,
    )
    directive: tuple[str, ...] = directive_option("#PBS", "-l place=scatter")


# Options that the job text relies on, each with the reason or the option to use instead.
REFUSED = {
    "-z": "qsub would not print the job id",
    "-I": "a job cannot be interactive",
    "-V": "exports all variables, including secrets; use --env for one",
    "-v": "visible to every user in qstat; use --env",
    "-N": "use --name",
    "-o": "the log is next to OUT",
    "-e": "the log is next to OUT",
    "-j": "the log is next to OUT",
    "-k": "the dialect decides where output goes",
    "-J": "use merge-launch sweep SWEEP.yml pbs --array",
    "-t": "use merge-launch sweep SWEEP.yml pbs --array",
    "-C": "the directives in the job begin with #PBS",
    "-R": "the log would be removed",
    "-r": "the job is always rerunnable and resumes its output",
}


def refusals(line: str) -> Iterator[str]:
    """Yield the reasons against one --directive, which may hold several options."""
    words = shlex.split(line)
    for start, reason in REFUSED.items():
        if any(word.startswith(start) for word in words):
            yield reason
    if "-W" in line and "block=" in line:
        yield "qsub would wait for the end of the job"
    if "-W" in line and "sandbox=" in line:
        yield "its folder is deleted with the job"
    if re.search(r"\s#", line):
        yield "qsub does not accept a comment after a directive"
