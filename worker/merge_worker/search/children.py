"""Programs that a search starts: merges, evaluations. They end when this process does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import Stopped, UsageError

PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent dies."""
MERGE_GRACE_S, COMMAND_GRACE_S = 3.0, 1.5
"""Time to end after SIGTERM. Both fit into the seconds after which a stopped worker exits."""


class Deadline:
    """The moment at which the search stops by itself, of the monotonic clock; None: never."""

    def __init__(self, seconds: float | None, began: float) -> None:
        self._end = None if seconds is None else began + seconds

    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise Stopped once the moment has come."""
        if self.left() == 0.0:
            raise Stopped("stopped at the deadline; run the same command to resume")


def worker_argv(*words: str) -> list[str]:
    """Return the command that runs this worker again, from its archive if it is in one."""
    root = Path(__file__).resolve().parents[2]
    return [sys.executable, *([str(root)] if root.is_file() else ["-m", "merge_worker"]), *words]


def run(
    argv: Sequence[str], cwd: Path, output: Path, variables: Mapping[str, str], deadline: Deadline
) -> int:
    """Run a program; its output goes to `output` with the endings .out and .err. Returns its code.

    Raises Stopped at the deadline; at this and any other error the program is ended first.
    """
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    # Only our own module is found through it, and not by programs that the user names.
    own = {} if root.is_file() or argv[0] != sys.executable else {"PYTHONPATH": path}
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def tie() -> None:
        if prctl is not None:
            prctl(PDEATHSIG, signal.SIGKILL)

    with (
        output.with_name(f"{output.name}.out").open("wb") as out,
        output.with_name(f"{output.name}.err").open("wb") as err,
    ):
        try:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, **own, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=tie,
            )
        except OSError as error:
            raise UsageError(f"{argv[0]}: {error.strerror}") from None
        try:
            return child.wait(timeout=deadline.left())
        except subprocess.TimeoutExpired:
            raise Stopped("stopped at the deadline; run the same command to resume") from None
        finally:
            if child.poll() is None:
                _end(child, MERGE_GRACE_S if argv[0] == sys.executable else COMMAND_GRACE_S)


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """End a program and what it has started: by SIGTERM, then by SIGKILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
