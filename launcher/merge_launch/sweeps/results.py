"""Output of `--then` of each member → columns of a table, CSV or JSON."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from merge_worker.messages import counted, first_names, nearest, printable
from merge_worker.recipe.places import labels
from merge_worker.search.printed import flat, json_objects, number

from .. import backends
from ..backends.base import Service
from ..errors import LauncherError, UsageError
from ..job.source import job_folder
from ..tracking import logs
from .definition import Member, Sweep
from .state import MemberState

MOST_COLUMNS = 6
"""Columns of results that are shown without --column."""
THEN = "-then.log"
EVENT = "event"
"""Key of every JSON object that the worker itself prints."""

Row = dict[str, Any]


def rows(sweep: Sweep, states: Mapping[str, MemberState]) -> tuple[list[Row], list[str]]:
    """Return a row for each member, and the names of the columns that hold results."""
    results = {m.name: printed_values(m, states[m.name]) for m in sweep.members}
    paths = list(dict.fromkeys(path for values in results.values() for path in values))
    short = dict(zip(paths, labels(paths), strict=True))
    taken = {"member", "state", "job", "out", *sweep.labels}
    name_of = {path: name if name not in taken else ".".join(path) for path, name in short.items()}
    table = []
    for member in sweep.members:
        state = states[member.name]
        job_id = state.merge.job_id if state.merge else None
        row: Row = {"member": member.name}
        row |= {label: member.values.get(label) for label in sweep.labels} | {"state": state.text}
        row |= {name_of[path]: results[member.name].get(path) for path in paths}
        table.append(row | {"job": job_id, "out": member.merge.out})
    return table, list(name_of.values())


def printed_values(member: Member, state: MemberState) -> dict[tuple[str, ...], Any]:
    """Return the last JSON object that `--then` printed, by path; else its last line."""
    text, is_of_then = _log_text(member, state)
    if objects := [values for values in json_objects(text) if EVENT not in values]:
        return dict(flat(objects[-1], ()))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {("result",): number(lines[-1])} if is_of_then and lines else {}


def _log_text(member: Member, state: MemberState) -> tuple[str, bool]:
    """Return the log with the output of `--then`, and whether it holds nothing else."""
    if state.merge is not None:
        backend = backends.get(state.merge.backend)
        if isinstance(backend, Service):
            try:
                return "\n".join(backend.log_lines(state.merge.job_id, False)), False
            except LauncherError:
                return "", False
    if state.then is not None:
        return _read(Path(state.then.log)), True
    folder = job_folder(member.merge.out)
    for pattern, is_of_then in ((f"*{THEN}", True), ("*.log", False)):
        if files := sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime):
            return _read(files[-1]), is_of_then
    return "", False


def _read(path: Path) -> str:
    try:
        with path.open(errors="replace") as log:
            return "\n".join(logs.clean(line, False) for line in log)
    except OSError:
        return ""


def in_order(table: list[Row], column: str | None, descending: bool) -> list[Row]:
    """Sort rows: numbers before text, and missing values last in either direction.

    Raises UsageError if there is no such column.
    """
    if column is None:
        return table
    names = list(dict.fromkeys(name for row in table for name in row))
    if column not in names:
        hint = f"{nearest(column, names)}: {first_names(names, 20)}"
        raise UsageError(f"--sort {printable(column)}: no such column{hint}")
    numbers = [row for row in table if _is_number(row.get(column))]
    rest = [row for row in table if not _is_number(row.get(column))]
    # NaN differs from itself.
    missing = [row for row in rest if row.get(column) is None or row[column] != row[column]]
    texts = [row for row in rest if row not in missing]
    return [
        *sorted(numbers, key=lambda row: row[column], reverse=descending),
        *sorted(texts, key=lambda row: str(row[column]), reverse=descending),
        *missing,
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value))


def columns(
    sweep: Sweep, table: Sequence[Row], results: Sequence[str], chosen: Sequence[str]
) -> tuple[list[str], str | None]:
    """Return the columns to show, and a note about those that are left out."""
    for name in chosen:
        if name not in results:
            raise UsageError(
                f"--column {printable(name)}: `--then` printed no such value"
                f"{nearest(name, results)}: {first_names(results, 20) or 'it printed none'}"
            )
    numeric = [r for r in results if any(_is_number(row[r]) for row in table)] or list(results)
    shown = list(chosen) or numeric[:MOST_COLUMNS]
    hidden = 0 if chosen else len(results) - len(shown)
    note = f"{counted(hidden, 'more columns')}: --column NAME, --json or --csv" if hidden else None
    return ["member", *sweep.labels, "state", *shown, "job"], note


def for_people(row: Row) -> Row:
    """Return a row with short numbers, and '-' for missing values."""
    shown = {name: "-" if value is None else value for name, value in row.items()}
    return {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in shown.items()}


def write_csv(table: Sequence[Row], target: TextIO) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    writer = csv.DictWriter(target, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
