"""What `--then` printed for each member → columns of a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from merge_worker.messages import counted, first_names, nearest, printable

from .. import backends
from ..backends.base import Service
from ..errors import LauncherError, UsageError
from ..tracking import logs
from .definition import Member, Sweep, labels
from .state import Found, job_folder

MOST_COLUMNS = 6
"""Of results, where nobody says which."""
THEN = "-then.log"
EVENT = "event"
"""The key of the worker's own JSON."""

Row = dict[str, Any]


def rows(sweep: Sweep, found: Mapping[str, Found]) -> tuple[list[Row], list[str]]:
    """A row for each member, and the names of the columns that hold results."""
    results = {m.name: printed(m, found[m.name]) for m in sweep.members}
    paths = list(dict.fromkeys(path for each in results.values() for path in each))
    short = dict(zip(paths, labels(paths), strict=True))
    taken = {"member", "state", "job", "out", *sweep.labels}
    named = {path: name if name not in taken else ".".join(path) for path, name in short.items()}
    table = []
    for member in sweep.members:
        one = found[member.name]
        row: Row = {"member": member.name}
        row |= {label: member.values.get(label) for label in sweep.labels}
        row["state"] = one.word
        row |= {named[path]: results[member.name].get(path) for path in paths}
        row |= {"job": one.merge.job_id if one.merge else None, "out": member.merge.out}
        table.append(row)
    return table, [named[path] for path in paths]


def printed(member: Member, found: Found) -> dict[tuple[str, ...], Any]:
    """The last JSON object that `--then` printed, by path; else its last line."""
    text, alone = _text(member, found)
    objects = [each for each in _objects(text) if EVENT not in each]
    if objects:
        return dict(_flat(objects[-1], ()))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {("result",): _number(lines[-1])} if alone and lines else {}


def _text(member: Member, found: Found) -> tuple[str, bool]:
    """The log of `--then`, and whether nothing else wrote into it."""
    if found.merge is not None and isinstance(backends.get(found.merge.backend), Service):
        service: Any = backends.get(found.merge.backend)
        try:
            return "\n".join(service.log_lines(found.merge.job_id, False)), False
        except LauncherError:
            return "", False
    if found.then is not None:
        return _read(Path(found.then.log)), True
    folder = job_folder(member)
    then = sorted(folder.glob(f"*{THEN}"), key=lambda path: path.stat().st_mtime)
    if then:
        return _read(then[-1]), True
    found_logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    return (_read(found_logs[-1]), False) if found_logs else ("", False)


def _read(path: Path) -> str:
    try:
        with path.open(errors="replace") as log:
            return "\n".join(logs.clean(line, False) for line in log)
    except OSError:
        return ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects that begin a line, the outermost only."""
    decoder = json.JSONDecoder()
    position = 0
    while (start := re.compile(r"^\s*\{", re.MULTILINE).search(text, position)) is not None:
        at = text.index("{", start.start())
        try:
            value, position = decoder.raw_decode(text, at)
        except ValueError:
            position = at + 1
            continue
        if isinstance(value, dict):
            yield value


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, (*path, str(key)))
    elif path:
        yield path, value if isinstance(value, str | int | float | None) else json.dumps(value)


def _number(text: str) -> Any:
    try:
        return json.loads(text) if re.fullmatch(r"-?[\d.eE+-]+", text) else text
    except ValueError:
        return text


def in_order(table: list[Row], column: str | None, descending: bool) -> list[Row]:
    """Numbers before text, and what has no value last, whichever way. UsageError."""
    if column is None:
        return table
    names = list(dict.fromkeys(name for row in table for name in row))
    if column not in names:
        raise UsageError(
            f"--sort {printable(column)}: no such column{nearest(column, names)}: "
            f"{first_names(names, 20)}"
        )
    numbers = [row for row in table if _is_number(row.get(column))]
    rest = [row for row in table if not _is_number(row.get(column))]
    absent = [row for row in rest if row.get(column) is None or row.get(column) != row.get(column)]
    texts = [row for row in rest if row not in absent]
    return [
        *sorted(numbers, key=lambda row: row[column], reverse=descending),
        *sorted(texts, key=lambda row: str(row[column]), reverse=descending),
        *absent,
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value))


def columns(
    sweep: Sweep, table: Sequence[Row], results: Sequence[str], chosen: Sequence[str]
) -> tuple[list[str], str | None]:
    """Those that people are shown, and a word on what is left out."""
    for name in chosen:
        if name not in results:
            raise UsageError(
                f"--column {printable(name)}: `--then` printed no such value"
                f"{nearest(name, results)}: {first_names(results, 20) or 'it printed none'}"
            )
    telling = [r for r in results if any(_is_number(row[r]) for row in table)] or list(results)
    shown = list(chosen) or telling[:MOST_COLUMNS]
    left = len(results) - len(shown)
    word = (
        f"{counted(left, 'more columns')}: --column NAME, --json or --csv"
        if left and not chosen
        else None
    )
    return ["member", *sweep.labels, "state", *shown, "job"], word


def for_people(row: Row) -> dict[str, object]:
    return {name: _cell(value) for name, value in row.items()}


def _cell(value: Any) -> object:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else value


def write_csv(table: Sequence[Row], target: TextIO) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    writer = csv.DictWriter(target, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
