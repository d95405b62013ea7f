"""The options of PBS, and checks of the directives that users add."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ...settings.options import OptionSpec, option
from ..base import DIRECTIVE, Resources

DIALECTS = ("openpbs", "torque", "gadi", "polaris", "abci", "generic")
"""The rows of `dialects.DIALECTS`, which a test compares with these names."""
TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
MEMORY = r"\d+([kmgt]b?|b)"


@dataclass(frozen=True)
class PbsResources(Resources):
    """The options of the PBS backend."""

    ngpus: int | None = option(None, OptionSpec("GPUs of a node", metavar="N"))
    ncpus: int | None = option(None, OptionSpec("CPU cores of a node", metavar="N", minimum=1))
    mem: str | None = option(
        None,
        OptionSpec(
            "memory of a node (--memory bounds the worker's buffers)",
            metavar="80g",
            pattern=f"(?i){MEMORY}",
            expected="a whole number with kb, mb, gb or tb, such as 80gb",
        ),
    )
    walltime: str | None = option(
        None,
        OptionSpec(
            "time limit",
            metavar="12:00:00",
            pattern=r"\d+(:\d\d){0,2}",
            expected="HH:MM:SS, MM:SS or seconds",
        ),
    )
    queue: str | None = option(
        None, OptionSpec("queue", metavar="NAME", pattern=TOKEN, expected="the name of a queue")
    )
    project: str | None = option(
        None,
        OptionSpec(
            "project to charge", metavar="NAME", pattern=TOKEN, expected="the name of a project"
        ),
    )
    charge: str | None = option(
        None,
        OptionSpec(
            "option of qsub that names the project, A or P (default: that of the dialect)",
            pattern="[AP]",
            expected="A or P",
        ),
    )
    nodes: int = option(1, OptionSpec("nodes that share the merge", metavar="N", minimum=1))
    dialect: str = option(
        "openpbs",
        OptionSpec(
            "how the site writes resources: openpbs (PBS Pro too), torque, gadi, polaris, abci, "
            "or generic (by --resource alone)",
            pattern="|".join(DIALECTS),
            expected=", ".join(DIALECTS[:-1]) + f" or {DIALECTS[-1]}",
        ),
    )
    resource: tuple[str, ...] = option(
        (),
        OptionSpec(
            "one more value of -l (repeatable), such as 'storage=gdata/ab12' or 'place=scatter'",
            metavar="VALUE",
            pattern=r"[A-Za-z][\x21\x24-\x7e]*",
            expected="a value of -l without blanks, such as place=scatter",
            accumulates=True,
        ),
    )
    directive: tuple[str, ...] = option(
        (),
        OptionSpec(
            "one more #PBS line (repeatable), such as '-l place=scatter'",
            metavar="LINE",
            pattern=DIRECTIVE,
            expected="one line of plain characters that begins with '-'",
            accumulates=True,
        ),
    )


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


def directive_faults(line: str) -> list[str]:
    """Return the mistakes in one --directive."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        return [f"--directive '{line}': {str(error).lower()}"]
    # A line may hold several options.
    faults = [
        f"--directive '{line}': {reason}"
        for start, reason in REFUSED.items()
        if any(word.startswith(start) for word in words)
    ]
    for part, reason in (
        ("block=", "qsub would wait for the end of the job"),
        ("sandbox=", "its folder is deleted with the job"),
    ):
        if "-W" in line and part in line:
            faults.append(f"--directive '{line}': {reason}")
    if re.search(r"\s#", line):
        faults.append(f"--directive '{line}': qsub does not accept a comment after a directive")
    return faults
