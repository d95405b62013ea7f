"""TODO"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """How to run, as far as it cannot change the result."""

    device: str = "auto"
    overwrite: bool = False
    resume: bool = True
    sha256: bool = False
    progress: str = "auto"
    allow_nonfinite: bool = False
    deadline_s: float | None = None
    prune: bool = False  # what was fetched and read is removed


@dataclass
class Clock:
    """Seconds of the phases, for the manifest."""

    began: float
    planned: float = 0.0
    stream_s: float = 0.0
    moved: int = 0  # bytes read and written while streaming

    def timings(self) -> dict[str, float]:
        return {
            "plan_s": round(self.planned - self.began, 3),
            "stream_s": round(self.stream_s, 3),
            "total_s": round(time.monotonic() - self.began, 3),
        }
