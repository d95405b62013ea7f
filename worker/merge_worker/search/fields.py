"""Fields of a search file → values, with a fault and its line for each that is wrong."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UsageError
from ..messages import nearest, printable
from ..recipe.places import EVERY, Place, PlaceError
from ..recipe.reader import DocumentReader
from ..recipe.yaml_document import Place as Line
from .score_table import ScoreTable, read_table
from .space import (
    Choice,
    Coordinates,
    Dimension,
    Interval,
    Range,
    Share,
    is_number,
    shown,
)

FORMS = "give [low, high], {low: …, high: …} or {choices: […]}"
RANGE_KEYS = ("low", "high", "step", "log", "points", "share")
MOST_POINTS = 1000

IN_MEMORY = "in-memory"


class MeasureFacts(NamedTuple):
    """Command, file for the perplexity, paths with their weights, and what a model in memory has.

    `function` is FILE.py:NAME; `in_memory` says that candidates are not written at all.
    """

    command: str | None
    data: str | None
    score: tuple[tuple[str, float], ...]
    function: str | None = None
    in_memory: bool = False


class Reader(DocumentReader):
    """One search file; a key that nothing reads is a fault."""

    def refuse(self) -> None:
        """Raise UsageError with every fault so far, if there are any."""
        if self.faults:
            raise UsageError("\n".join(dict.fromkeys(self.faults)))

    def refuse_unknown(self, path: Line, table: Mapping[Any, Any], allowed: Sequence[str]) -> None:
        """Add a fault for each key that is not allowed, with the nearest that is."""
        for key in table:
            if key not in allowed:
                hint = nearest(str(key), allowed) or f"; known are {', '.join(allowed)}"
                self.fault((*path, str(key)), f"unknown key{hint}")

    def string(self, key: str, value: Any, path: Line = ()) -> str | None:
        """Return text that is not empty; None stays None."""
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        self.fault((*path, key), f"expected text, got {shown(value)}")
        return None

    def word(self, key: str, value: Any, words: Sequence[str]) -> str:
        if value in words:
            return str(value)
        hint = nearest(str(value), words)
        self.fault((key,), f"expected {', '.join(words)}, got {shown(value)}{hint}")
        return words[0]

    def whole(self, key: str, value: Any, low: int, high: int, path: Line = ()) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.fault(
            (*path, key), f"expected a whole number from {low} to {high}, got {shown(value)}"
        )
        return low

    def space(self, given: Any, base: Any) -> list[Dimension]:
        """Read `space`: a dimension for each path into the recipe."""
        if not isinstance(given, dict) or not given:
            self.fault(("space",), "expected paths into the recipe and their values; " + FORMS)
            return []
        found: dict[tuple[str, ...], Dimension] = {}
        for key, value in given.items():
            line: Line = ("space", str(key))
            try:
                place = Place.read(str(key), self.document.place(line))
                places = expanded(base, place)
            except (UsageError, PlaceError) as error:
                where = "" if isinstance(error, UsageError) else f"{self.document.place(line)}: "
                self.faults.append(f"{where}{error}")
                continue
            if place.parts in found:
                self.fault(line, f"the same place as {found[place.parts].place.text}; drop one")
            dimension = self.dimension(line, value, place, places)
            if dimension is not None:
                found[place.parts] = dimension
        return list(found.values())

    def dimension(
        self, line: Line, value: Any, place: Place, places: Sequence[Place]
    ) -> Dimension | None:
        """Read the values of one place; `places` are all that it stands for."""
        if isinstance(value, list):
            if len(value) != 2 or not all(map(is_number, value)):
                self.fault(line, f"got {shown(value)}; {FORMS}")
                return None
            value = {"low": value[0], "high": value[1]}
        if not isinstance(value, dict):
            self.fault(line, f"got {shown(value)}; {FORMS}")
            return None
        if "choices" in value:
            return self.choice(line, value, place)
        before = len(self.faults)
        self.refuse_unknown(line, value, (*RANGE_KEYS, "choices"))
        missing = [key for key in ("low", "high") if not is_number(value.get(key))]
        if missing:
            self.fault(line, f"{' and '.join(missing)} must be a number; {FORMS}")
        elif len(self.faults) == before:
            if "share" in value:
                return self.share(line, value, place, places)
            return self.range(line, value, place)
        return None

    def choice(self, line: Line, value: Mapping[str, Any], place: Place) -> Choice | None:
        self.refuse_unknown(line, value, ("choices",))
        choices = value["choices"]
        if not isinstance(choices, list) or not choices:
            self.fault(line, "choices must be a list of values")
            return None
        if len({(type(choice), repr(choice)) for choice in choices}) < len(choices):
            self.fault(line, "a choice is given twice; drop one")
            return None
        return Choice(place, tuple(choices))

    def range(self, line: Line, value: Mapping[str, Any], place: Place) -> Range | None:
        low: Any = value["low"]
        high: Any = value["high"]
        step, log, faults = value.get("step"), value.get("log"), []
        if not low < high:
            faults.append(f"low {low} must be below high {high}")
        elif step is not None and not (is_number(step) and 0 < step <= high - low):
            faults.append(f"step must be above 0 and at most high minus low, got {shown(step)}")
        if log not in (None, True, False):
            faults.append(f"log must be true or false, got {shown(log)}")
        elif log and not low > 0:
            faults.append("log requires a low above 0")
        elif log and step is not None:
            faults.append("log conflicts with step; drop one")
        points = value.get("points")
        if points is not None:
            points = self.whole("points", points, 2, MOST_POINTS, line)
        for text in faults:
            self.fault(line, text)
        if faults:
            return None
        whole = step is not None and all(isinstance(v, int) for v in (low, high, step))
        if step is not None:
            # The last value that the steps reach.
            high = low + int((high - low) / step + 1e-9) * step
        interval = Interval(low, high, step, bool(log), whole)
        return Range(place, interval, points)

    def share(
        self, line: Line, value: Mapping[str, Any], place: Place, places: Sequence[Place]
    ) -> Share | None:
        total, faults = value["share"], []
        if not is_number(total) or total <= 0:
            faults.append(f"share is the sum of the weights, above 0; got {shown(total)}")
        elif value["low"] != 0 or value["high"] < total:
            faults.append(f"weights that share {total:g} go from 0 to {total:g}; other bounds")
            faults[-1] += " need ranges and `normalize: true`"
        if both := [key for key in ("step", "log", "points") if value.get(key)]:
            faults.append(f"share conflicts with {both[0]}; drop one")
        if len(places) < 2:
            faults.append(f"share needs several places: a path with '{EVERY}' and two models")
        for text in faults:
            self.fault(line, text)
        return None if faults else Share(place, float(total), tuple(places))

    def start(self, given: Any, space: Sequence[Dimension]) -> list[Coordinates]:
        """Read `start`: mappings from path to value, of candidates that are tried first."""
        if given is None:
            return []
        if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
            self.fault(("start",), "expected a list of mappings from path to value")
            return []
        by_parts = {dimension.place.parts: dimension for dimension in space}
        known = [dimension.place.text for dimension in space]
        found: list[Coordinates] = []
        for number, entry in enumerate(given):
            found.append({})
            for key, value in entry.items():
                line: Line = ("start", number, str(key))
                try:
                    dimension = by_parts.get(Place.read(str(key), self.document.place(line)).parts)
                    if dimension is None:
                        hint = nearest(str(key), known)
                        self.fault(line, f"not in 'space'{hint}")
                    else:
                        found[-1] |= dimension.coordinates(value)
                except ValueError as error:
                    self.fault(line, str(error))
                except UsageError as error:
                    self.faults.append(str(error))
        return found


def read_measure(
    reader: Reader, table: Mapping[str, Any], path: Line, required: bool
) -> MeasureFacts | None:
    """Read `evaluate` or `perplexity`, and `score`; None after a fault."""
    before = len(reader.faults)
    command = reader.string("evaluate", table.get("evaluate"), path)
    data = reader.string("perplexity", table.get("perplexity"), path)
    function = _function(reader, table.get("function"), path)
    in_memory = command == IN_MEMORY
    if in_memory:
        command = None
        if (data is None) == (function is None) and len(reader.faults) == before:
            both = "one of them" if data else "with it"
            text = f"in-memory requires 'perplexity: FILE' or 'function: FILE.py:NAME'; give {both}"
            reader.fault((*path, "evaluate"), text)
    elif function is not None:
        reader.fault((*path, "function"), "requires 'evaluate: in-memory'")
    if command is not None and data is not None:
        reader.fault((*path, "perplexity"), "conflicts with 'evaluate'; keep one")
    is_given = command is not None or data is not None or function is not None
    if not is_given and required and len(reader.faults) == before:
        reader.fault(path, "requires 'evaluate: COMMAND' or 'perplexity: FILE'")
    score = _score(reader, table.get("score"), path)
    if data is not None and score:
        reader.fault((*path, "score"), "conflicts with 'perplexity', which is the score itself")
    if len(reader.faults) > before:
        return None
    return MeasureFacts(command, data, score, function, in_memory)


def _function(reader: Reader, given: Any, path: Line) -> str | None:
    text = reader.string("function", given, path)
    if text is not None and not re.fullmatch(r".+\.py:[^\W\d]\w*", text):
        reader.fault((*path, "function"), f"expected FILE.py:NAME, got {shown(text)}")
        return None
    return text


def _score(reader: Reader, given: Any, path: Line) -> tuple[tuple[str, float], ...]:
    line: Line = (*path, "score")
    if given is None:
        return ()
    if isinstance(given, str) and given.strip():
        return ((given.strip(), 1.0),)
    if not isinstance(given, dict) or not given:
        reader.fault(line, "expected a path such as results.mine.acc, or paths with weights")
        return ()
    for key, weight in given.items():
        if not is_number(weight) or weight == 0:
            text = f"expected a weight other than 0, got {shown(weight)}"
            reader.fault((*line, str(key)), text)
    if len(reader.faults) and any(not is_number(weight) for weight in given.values()):
        return ()
    return tuple((str(key), float(weight)) for key, weight in given.items())


def names_file(given: Any) -> bool:
    """Return whether `scores` is a file, and not a table in the search file itself."""
    return isinstance(given, str) or (
        isinstance(given, dict) and isinstance(given.get("file"), str)
    )


def read_scores(reader: Reader, given: Any) -> ScoreTable | None:
    """Read `scores`: a table of models and tasks, or the file of one; higher is better."""
    if given is None:
        return None
    table = inline_scores(reader, given)
    if table is None:
        return None
    try:
        found = read_table(json.dumps(table["table"]), reader.document.place(("scores",)))
    except UsageError as error:
        reader.faults.append(str(error))
        return None
    if table["direction"] == "maximize":
        return found
    return replace(found, scores=tuple(tuple(-x for x in row) for row in found.scores))


def inline_scores(reader: Reader, given: Any) -> dict[str, Any] | None:
    """Return `scores` as a table with its direction, read from a file if one is named."""
    line: Line = ("scores",)
    table: dict[str, Any] = {"file": given} if isinstance(given, str) else given
    if not isinstance(table, dict):
        reader.fault(line, "expected a file, or scores by model and task")
        return None
    if not isinstance(table.get("file"), str) and "table" not in table:
        table = {"table": table}
    reader.refuse_unknown(line, table, ("file", "table", "direction"))
    direction = table.get("direction", "maximize")
    if direction not in ("maximize", "minimize"):
        reader.fault((*line, "direction"), f"expected maximize, minimize, got {shown(direction)}")
        return None
    if "table" in table:
        return {"table": table["table"], "direction": direction}
    path = reader.folder / Path(table["file"]).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        found = read_table(text, printable(table["file"]))
    except OSError as error:
        reader.fault(line, f"{printable(table['file'])}: {error.strerror}")
        return None
    except UnicodeDecodeError:
        reader.fault(line, f"{printable(table['file'])}: not text")
        return None
    except UsageError as error:
        reader.faults.append(str(error))
        return None
    rows = zip(found.models, found.scores, strict=True)
    by_task = {m: dict(zip(found.tasks, row, strict=True)) for m, row in rows}
    return {"table": by_task, "direction": direction}


def expanded(base: Any, place: Place) -> list[Place]:
    """Return the places that a path with '*' stands for in a recipe. Raises PlaceError."""
    counts, node = [], base
    for part in place.parts:
        if part == EVERY:
            if not isinstance(node, list) or not node:
                raise PlaceError(f"{printable(place.text)}: the recipe has no list at '{EVERY}'")
            counts.append(range(len(node)))
            node = node[0]
        elif isinstance(node, list):
            node = node[int(part)] if part.isdecimal() and int(part) < len(node) else None
        else:
            node = node.get(part) if isinstance(node, dict) else None
    found = []
    for numbers in itertools.product(*counts):
        positions = iter(numbers)
        parts = tuple(str(next(positions)) if p == EVERY else p for p in place.parts)
        found.append(Place(".".join(f'"{p}"' if "." in p else p for p in parts), parts))
    return found
