"""TODO"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ...settings.options import OptionSpec, option
from ..base import DIRECTIVE, Resources
from . import dialects

DIALECTS = tuple(dialects.DIALECTS)
TOKEN = r"[A-Za-z0-9][A-Za-z0-9_.@-]*"
MEMORY = r"\d+([kmgt]b?|b)"


@dataclass(frozen=True)
class PbsResources(Resources):
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
            "what is charged", metavar="NAME", pattern=TOKEN, expected="the name of a project"
        ),
    )
    charge: str | None = option(
        None,
        OptionSpec(
            "the option of qsub that names what is charged: A or P (as the dialect has it)",
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
