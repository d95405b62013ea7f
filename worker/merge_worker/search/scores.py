"""The score in what an evaluation printed, or in the JSON files that it wrote."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..messages import first_names, nearest, printable
from .definition import Measure
from .printed import flat, json_objects, number

EVENT = "event"
"""Key of the JSON objects that report the progress of this worker."""
MOST_FILES, LARGEST = 10_000, 64 << 20
MOST_NAMES = 12
ONLY = "score"
"""Key that is the score where the search file names none."""

Look = dict[Path, tuple[int, int]]


class NoScore(ValueError):
    """An evaluation that ended well, but left no score."""


@dataclass(frozen=True)
class Score:
    """A score: the weighted sum of `parts`, by path. `stderr` is its standard error, if known."""

    value: float
    parts: Mapping[str, float]
    stderr: float | None = None


def look(folder: Path) -> Look:
    """Return modification time and size of the JSON files in a folder and those below it."""
    found: Look = {}
    for path in _json_files(folder):
        try:
            status = path.stat()
        except OSError:
            continue
        found[path] = status.st_mtime_ns, status.st_size
    return found


def _json_files(folder: Path) -> Iterator[Path]:
    count = 0
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".json"):
                count += 1
                if count > MOST_FILES:
                    return
                yield Path(root) / name


def read_score(measure: Measure, printed: str, folder: Path, before: Look) -> Score:
    """Find the score in printed text, else in files that were written after `before`.

    Raises NoScore, with the values that are there.
    """
    sources = list(_sources(printed, folder, before))
    if not measure.score:
        return _only_number(sources, printed)
    parts, errors = {}, {}
    for path, _ in measure.score:
        values = next((values for values in sources if path in values), None)
        if values is None:
            known = list(dict.fromkeys(name for values in sources for name in values))
            there = first_names(known, MOST_NAMES) or "nothing: it printed and wrote no JSON object"
            hint = nearest(path, known)
            raise NoScore(f"no value '{printable(path)}'{hint}; there is {there}")
        parts[path] = _finite(path, values[path])
        errors[path] = _stderr(values, path)
    total = math.fsum(weight * parts[path] for path, weight in measure.score)
    return Score(total, parts, _combined(measure, errors))


def _sources(printed: str, folder: Path, before: Look) -> Iterator[dict[str, Any]]:
    """Yield values by path: of all printed objects, then of each written file, newest first."""
    values: dict[str, Any] = {}
    for each in json_objects(printed):
        if EVENT not in each:
            values |= _by_path(each)
    if values:
        yield values
    now = look(folder)
    for path in sorted(
        (p for p, seen in now.items() if before.get(p) != seen), key=now.__getitem__
    )[::-1]:
        if now[path][1] > LARGEST:
            continue
        try:
            read = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(read, dict):
            yield _by_path(read)


def _by_path(value: dict[str, Any]) -> dict[str, Any]:
    return {".".join(path): item for path, item in flat(value, ())}


def _only_number(sources: list[dict[str, Any]], printed: str) -> Score:
    """Return the score where no path is given: there must be one number only."""
    for values in sources:
        numbers = {path: v for path, v in values.items() if _is_real(v) and "stderr" not in path}
        if ONLY in values or len(numbers) == 1:
            path = ONLY if ONLY in values else next(iter(numbers))
            return Score(_finite(path, values[path]), {path: values[path]}, _stderr(values, path))
        if numbers:
            names = first_names(numbers, MOST_NAMES)
            raise NoScore(f"several numbers; choose one by 'score': {names}")
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    last = number(lines[-1]) if lines else None
    if last is None or not _is_real(last):
        shown = f"'{printable(lines[-1])[:80]}'" if lines else "nothing"
        if lines and re.fullmatch(r"[-+]?(nan|inf(inity)?)", lines[-1], re.IGNORECASE):
            return Score(_finite("score", float(lines[-1])), {})
        raise NoScore(f"no JSON object, and the last line is not a number: {shown}")
    return Score(_finite("score", last), {})


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(path: str, value: Any) -> float:
    if not _is_real(value):
        raise NoScore(f"'{printable(path)}' is not a number: {printable(repr(value))[:60]}")
    if not math.isfinite(value):
        raise NoScore(f"'{printable(path)}' is {value}")
    return float(value)


def _stderr(values: Mapping[str, Any], path: str) -> float | None:
    """Return the standard error beside a value, as `acc_stderr,none` is beside `acc,none`."""
    head, dot, last = path.rpartition(".")
    metric, comma, kind = last.partition(",")
    for name in (f"{metric}_stderr{comma}{kind}", "stderr"):
        found = values.get(f"{head}{dot}{name}")
        if _is_real(found) and math.isfinite(found):  # type: ignore[arg-type]
            return abs(float(found))  # type: ignore[arg-type]
    return None


def _combined(measure: Measure, errors: Mapping[str, float | None]) -> float | None:
    """Return the standard error of a weighted sum of independent values; None if one is missing."""
    total = 0.0
    for path, weight in measure.score:
        error = errors[path]
        if error is None:
            return None
        total += (weight * error) ** 2
    return math.sqrt(total)
