"""The only caller of other programs: `answer` for their reply, `foreground` for a job here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from merge_worker.messages import printable

from .errors import ClusterError

TIMEOUT_S = 120.0
SITE_VARIABLES = ("SLURM_CLUSTERS", "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


class CommandFailed(ClusterError):
    """A program answered with an error; `output` is what it printed all the same."""

    def __init__(self, message: str, status: int, output: str) -> None:
        super().__init__(message)
        self.status = status
        self.output = output


def find(name: str) -> str:
    """Where a program is. ClusterError when it is nowhere."""
    program = shutil.which(name)
    if program is None:
        raise ClusterError(
            f"{name} is not on this machine's PATH; run this where the scheduler is, "
            f"or add --dry-run to see the job"
        )
    return program


def answer(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """What a program prints. ClusterError when it is missing, fails or stays silent."""
    program = find(argv[0])
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=clean_environment(os.environ),
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        silent = ClusterError(f"{argv[0]} did not answer within {timeout_s:.0f} s")
        silent.unanswered = True
        raise silent from None
    except OSError as error:
        raise ClusterError(f"{program}: {error.strerror}") from None
    output, errors = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode != 0:
        # Some wrappers of qsub report their errors on stdout.
        words = error_lines(errors) or error_lines(output) or "it gave no reason"
        raise CommandFailed(
            f"{argv[0]} failed with status {done.returncode}: {words}", done.returncode, output
        )
    return output


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Without what an outer Slurm job has set: sbatch would hand it on, and srun ends over memory
    that is given twice, and the number of an outer array would be taken for one of its own."""
    inside = "SLURM_JOB_ID" in variables
    foreign = [
        k for k in variables if inside and k.startswith("SLURM_") and k not in SITE_VARIABLES
    ]
    return {key: value for key, value in variables.items() if key not in foreign}


def error_lines(text: str) -> str:
    """The lines that say what is wrong: qsub and sbatch add pages of usage to bad options, and a
    qsub in front of sbatch tells the call first."""
    lines = [printable(line).strip(" '") for line in text.splitlines() if line.strip(" '")]
    lines = [line for line in lines if "error: " in line] or lines
    kept = []
    for line in lines[:3]:
        if line.lower().startswith("usage"):
            break
        kept.append(line)
    return "\n  ".join(kept)


def foreground(argv: Sequence[str], variables: Mapping[str, str] | None = None) -> int:
    """Run a program in this terminal and wait for its end; its exit code as a shell gives it."""
    child = subprocess.Popen(list(argv), env={**os.environ, **(variables or {})})

    def hand_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    def ignore(number: int, frame: FrameType | None) -> None:
        """The terminal has sent it to the child too."""

    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGINT: ignore,
        signal.SIGTERM: hand_on,
        signal.SIGHUP: hand_on,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code
