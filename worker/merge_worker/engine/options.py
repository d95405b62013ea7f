"""Options of a run that cannot change its result, and the clock of its phases."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..units import GIB


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


@dataclass
class Clock:
    """Times of the phases in seconds, and bytes moved, for the manifest."""

    began: float
    planned: float = 0.0
    stream_s: float = 0.0
    bytes_moved: int = 0  # bytes read and written while streaming

    @property
    def gib_per_s(self) -> float:
        return self.bytes_moved / GIB / max(1e-9, self.stream_s)

    def timings(self) -> dict[str, float]:
        return {
            "plan_s": round(self.planned - self.began, 3),
            "stream_s": round(self.stream_s, 3),
            "total_s": round(time.monotonic() - self.began, 3),
        }
