"""Tables for people and for programs: aligned columns, or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from merge_worker.messages import printable

COLORS = {"done": 32, "running": 36, "queued": 33, "failed": 31, "cancelled": 35}
"""ANSI codes by the first words of a job's state."""


def show(rows: Sequence[Mapping[str, object]], columns: Sequence[str], as_json: bool) -> None:
    """Print the named columns of each row below a header; as JSON, all values of each row."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], indent=1))
        return
    lines = [[column.upper() for column in columns]]
    lines += [[printable(_cell(row[column])) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    colored = wants_color(sys.stdout)
    for line in lines:
        padded = [*map(str.ljust, line[:-1], widths), line[-1]]
        print("  ".join(map(_colored, padded) if colored else padded))


def wants_color(target: TextIO) -> bool:
    """Return whether a stream takes colors."""
    return target.isatty() and not os.environ.get("NO_COLOR")


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _colored(text: str) -> str:
    color = COLORS.get(text.strip().partition(",")[0])
    return text if color is None else f"\x1b[{color}m{text}\x1b[0m"
