"""Options of a run that cannot change its result, and the clock of its phases."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..system.caller import Caller
from ..system.progress import print_event
from ..system.signals import StopFlag, stop_on_signal
from ..units import GIB

if TYPE_CHECKING:
    from ..planning.plan import Plan


@dataclass(frozen=True)
class RunOptions:
    """Options of a run; none of them changes the bytes of the result."""

    device: str = "auto"
    expect_gpus: int = 0
    overwrite: bool = False
    resume: bool = True
    sha256: bool = False
    progress: str = "auto"
    allow_nonfinite: bool = False
    deadline_s: float | None = None
    patience_s: float = 10.0  # how long a rank that is done waits for ranks that have not begun
    prune: bool = False  # remove downloaded weights once they are read
    caller: Caller | None = None  # the program that merges in its own process, if it is not ours
    gates: Callable[[Plan, RunOptions], None] | None = None  # writes those of a mixture

    def stop_on_signal(self, stop: StopFlag) -> AbstractContextManager[None]:
        """Set `stop` on signals while a block runs, unless they belong to another program."""
        return stop_on_signal(stop) if self.caller is None else nullcontext()

    def warn(self, text: str) -> None:
        """Print a warning, or hand it to the caller."""
        if self.caller is None:
            print_event(self.progress, "warning", text)
        else:
            self.caller.warn(text)


@dataclass
class Clock:
    """Times of the phases in seconds, and bytes moved, for the manifest."""

    began: float
    planned: float = 0.0
    stream_s: float = 0.0
    bytes_in: int = 0  # read and written while streaming
    bytes_out: int = 0

    @property
    def gib_per_s(self) -> float:
        return (self.bytes_in + self.bytes_out) / GIB / max(1e-9, self.stream_s)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def timings(self) -> dict[str, float]:
        return {
            "plan_s": round(self.planned - self.began, 3),
            "stream_s": round(self.stream_s, 3),
            "total_s": round(self.elapsed_s, 3),
        }
