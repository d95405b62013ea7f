"""A table of scores per model and task, from CSV or JSON.

    model,math,code            {"m1": {"math": 0.61, "code": 0.32},
    m1,0.61,0.32                "m2": {"math": 0.48, "code": 0.55}}
    m2,0.48,0.55

JSON may also be a list of such rows: [{"model": "m1", "math": 0.61, "code": 0.32}, …].
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..errors import UsageError
from ..messages import first_names, printable

MODEL = "model"


@dataclass(frozen=True)
class ScoreTable:
    """Scores by model (rows) and task (columns)."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]

    def of(self, models: Sequence[str], where: str) -> ScoreTable:
        """Return the rows of these models, in their order, by whole names or last parts of paths.

        Raises UsageError with every model that is missing or stands for several rows.
        """
        rows, faults = [], []
        for model in models:
            found = [i for i, name in enumerate(self.models) if name == model]
            if not found:
                last = PurePath(model).name
                found = [i for i, name in enumerate(self.models) if PurePath(name).name == last]
            if len(found) == 1:
                rows.append(self.scores[found[0]])
            elif found:
                faults.append(f"{where}: {printable(model)} may be any of {len(found)} rows")
            else:
                known = first_names(self.models)
                faults.append(f"{where}: no scores of {printable(model)}; there are {known}")
        if faults:
            raise UsageError("\n".join(faults))
        return ScoreTable(tuple(models), self.tasks, tuple(rows))


def read_table(text: str, where: str) -> ScoreTable:
    """Read a table of scores. Raises UsageError with every fault."""
    text = text.removeprefix("\ufeff")
    is_json = text.lstrip()[:1] in ("{", "[")
    return _table(_json_rows(text, where) if is_json else _csv_rows(text, where), where)


Row = tuple[str, Mapping[str, Any]]


def _json_rows(text: str, where: str) -> list[Row]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {printable(str(error))}") from None
    if isinstance(value, dict) and all(isinstance(row, dict) for row in value.values()):
        return list(value.items())
    if isinstance(value, list) and all(
        isinstance(row, dict) and isinstance(row.get(MODEL), str) for row in value
    ):
        return [(row[MODEL], {k: v for k, v in row.items() if k != MODEL}) for row in value]
    raise UsageError(
        f"{where}: expected scores by model and task: "
        '{"m1": {"task": 0.5, …}, …} or [{"model": "m1", "task": 0.5, …}, …]'
    )


def _csv_rows(text: str, where: str) -> list[Row]:
    first = text.lstrip().partition("\n")[0]
    mark = max(",;\t", key=first.count)
    try:
        lines = [row for row in csv.reader(io.StringIO(text), delimiter=mark) if any(row)]
    except csv.Error as error:
        raise UsageError(f"{where}: not valid CSV: {error}") from None
    if len(lines) < 2 or len(lines[0]) < 2:
        raise UsageError(f"{where}: expected a line 'model,TASK,TASK…' and one line for each model")
    tasks = [name.strip() for name in lines[0][1:]]
    faults = [
        f"{where}: row {number}: {len(line) - 1} scores for {len(tasks)} tasks"
        for number, line in enumerate(lines[1:], start=2)
        if len(line) != len(lines[0])
    ]
    if len(set(tasks)) < len(tasks):
        faults.append(f"{where}: a task stands twice in the first line")
    if faults:
        raise UsageError("\n".join(faults))
    return [
        (line[0].strip(), dict(zip(tasks, (_number(cell) for cell in line[1:]), strict=True)))
        for line in lines[1:]
    ]


def _number(cell: str) -> float | str:
    try:
        return float(cell.strip().removesuffix("%"))
    except ValueError:
        return cell


def _table(rows: Iterable[Row], where: str) -> ScoreTable:
    rows = list(rows)
    tasks = list(dict.fromkeys(task for _, row in rows for task in row))
    models = [model for model, _ in rows]
    faults = [
        f"{where}: {printable(model)} stands twice"
        for model in dict.fromkeys(models)
        if models.count(model) > 1
    ]
    if len(rows) < 2 or not tasks:
        faults.append(f"{where}: expected the scores of two or more models; found {len(rows)}")
    for model, row in rows:
        for task in tasks:
            value = row.get(task)
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not real or not math.isfinite(value):  # type: ignore[arg-type]
                shown = "missing" if value in (None, "") else printable(repr(value))[:40]
                faults.append(
                    f"{where}: {printable(model)}, {printable(task)}: expected a number, {shown}"
                )
    if faults:
        raise UsageError("\n".join(faults))
    scores = tuple(tuple(float(row[task]) for task in tasks) for _, row in rows)
    return ScoreTable(tuple(models), tuple(tasks), scores)
