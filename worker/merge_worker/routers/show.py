"""Lines about a training: steps while it runs, and what became of it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..messages import counted, print_line
from ..system.progress import CLEAR, PLAIN_PERIOD_S
from ..units import duration


class Steps:
    """Prints steps and losses to stderr, as `--progress` says."""

    def __init__(self, mode: str, steps: int, begun: int) -> None:
        if mode == "auto":
            tty = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
            mode = "bar" if tty else "plain"
        self.mode, self.steps, self._first = mode, steps, begun
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.mode == "bar":
            print(CLEAR, end="", file=sys.stderr, flush=True)

    def done(self, step: int, loss: float) -> None:
        """Show the loss of the step that was just done, of its own pieces."""
        now = time.monotonic()
        left = (now - self._began) * (self.steps - step) / max(1, step - self._first)
        if self.mode == "json":
            facts = {"event": "step", "step": step, "steps": self.steps, "loss": round(loss, 5)}
            print_line(json.dumps({**facts, "left_s": round(left, 1)}), sys.stderr)
            return
        text = f"step {step} of {self.steps}: loss {loss:.4f}, {duration(left)} left"
        if self.mode == "bar":
            print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)
        elif self.mode == "plain" and (step == self.steps or now - self._shown > PLAIN_PERIOD_S):
            self._shown = now
            print_line(text, sys.stderr)


def report(out: Path, record: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> str:
    """Return the lines that end a training."""
    loss = record["loss"]
    change = loss["after"] - loss["before"]
    lines = [
        f"{out}: {counted(record['routers'], 'routers')} trained, "
        f"{counted(record['settings']['steps'], 'steps')}; held-out loss {loss['before']:.4f} "
        f"before, {loss['after']:.4f} after ({change:+.4f} nats a token)",
        f"  most used expert: {_most(record['load']['before'])} of the choices before, "
        f"{_most(record['load']['after'])} after",
    ]
    if change > 0:
        lines.append(
            "warning: the held-out loss rose; more text or a lower --lr may help, and merging the "
            "recipe again brings the former routers back"
        )
    if manifest is None:
        lines.append("note: the folder has no manifest, so this training is recorded nowhere")
    elif manifest.get("evaluations"):
        lines.append("note: evaluations recorded before are of the former routers")
    return "\n".join(lines)


def _most(load: Sequence[Sequence[int]]) -> str:
    """Return the share of the most used expert, as a mean over routers."""
    shares = [max(counts) / max(1, sum(counts)) for counts in load]
    return f"{100 * sum(shares) / len(shares):.0f} %"
