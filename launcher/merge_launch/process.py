"""The only caller of other programs: `answer` returns their output, `foreground` runs a job."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

from merge_worker.messages import printable

from .errors import ClusterError

TIMEOUT_S = 120.0
# Slurm settings that belong to the site, not to the job that merge-launch may run in.
SITE_VARIABLES = ("SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
# Variables of sbatch that win over the directives of a job, with what to use instead.
OVERRULING = {
    "SBATCH_ARRAY_INX": "use merge-launch sweep SWEEP.yml slurm --array",
    "SBATCH_OUTPUT": "the log is next to OUT",
    "SBATCH_ERROR": "the log is next to OUT",
    "SBATCH_TIMELIMIT": "use --time",
    "SBATCH_WAIT": "use --follow",
    "SBATCH_JOB_NAME": "use --name",
}
# The user's defaults for these commands would hide jobs from them, or change what they print.
DEFAULTS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_TIME_FORMAT")


class CommandFailed(ClusterError):
    """A program that ended with an error. `output` is its stdout, `errors` its stderr."""

    def __init__(self, message: str, status: int, output: str, errors: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.output = output
        self.errors = errors


def find(name: str) -> str:
    """Return the path of a program. Raises ClusterError if it is not on PATH."""
    program = shutil.which(name)
    if program is None:
        way_out = "run this on a login node, or add --dry-run to see the job"
        raise ClusterError(f"{name} is not on this machine's PATH; {way_out}")
    return program


def answer(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """Return the stdout of a program.

    Raises ClusterError if the program is missing, fails or does not end in time.
    """
    program = find(argv[0])
    try:
        process = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=for_schedulers(os.environ),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        timeout = ClusterError(f"{argv[0]} did not answer within {timeout_s:.0f} s")
        timeout.unanswered = True
        raise timeout from None
    except OSError as error:
        raise ClusterError(f"{program}: {error.strerror}") from None
    output, errors = (text.decode(errors="replace") for text in (process.stdout, process.stderr))
    if process.returncode != 0:
        # Some wrappers of qsub report their errors on stdout.
        reason = error_lines(errors) or error_lines(output) or "no error message"
        message = f"{argv[0]} failed with status {process.returncode}: {reason}"
        raise CommandFailed(message, process.returncode, output, errors)
    return output


def for_schedulers(variables: Mapping[str, str]) -> dict[str, str]:
    """Drop the user's defaults of Slurm's commands, and the variables of a job around this process.

    sbatch would pass the latter on: srun fails if memory is given twice, and the task number of an
    outer array would be taken for the new job's own.
    """
    dropped = (*DEFAULTS, "SLURM_") if "SLURM_JOB_ID" in variables else DEFAULTS
    return {
        name: value
        for name, value in variables.items()
        if name in SITE_VARIABLES or not (name in OVERRULING or name.startswith(dropped))
    }


def error_lines(text: str) -> str:
    """Return up to three lines that state an error.

    qsub and sbatch add pages of usage to bad options, and a qsub that wraps sbatch prints the call
    before its errors.
    """
    lines = [printable(line).strip(" '") for line in text.splitlines() if line.strip(" '")]
    lines = [line for line in lines if "error: " in line] or lines
    kept = itertools.takewhile(lambda line: not line.lower().startswith("usage"), lines[:3])
    return "\n  ".join(kept)


def foreground(argv: Sequence[str], variables: Mapping[str, str] | None = None) -> int:
    """Run a program in this terminal and wait for its end. Returns the exit code a shell gives."""
    child = subprocess.Popen(list(argv), env={**os.environ, **(variables or {})})

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGHUP)}
    # The terminal sends an interrupt to the child too.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
