"""Tables for people and for programs: columns that fit, or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from merge_worker.messages import printable

COLOURS = {"done": 32, "running": 36, "queued": 33, "failed": 31, "cancelled": 35}


def show(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str],
    as_json: bool,
    target: TextIO | None = None,
) -> None:
    """The columns of each row under their names; as JSON, all that the rows hold."""
    target = target or sys.stdout
    if as_json:
        print(json.dumps([dict(row) for row in rows], indent=1), file=target)
        return
    cells = [[column.upper() for column in columns]]
    cells += [[printable(_cell(row[column])) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    coloured = target.isatty() and not os.environ.get("NO_COLOR")
    for line in cells:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        padded[-1] = line[-1]
        if coloured:
            padded = [_painted(text) for text in padded]
        print("  ".join(padded), file=target)


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _painted(text: str) -> str:
    colour = COLOURS.get(text.strip().partition(",")[0])
    return text if colour is None else f"\x1b[{colour}m{text}\x1b[0m"
