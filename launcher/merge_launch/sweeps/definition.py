"""SWEEP.yml → its members: one base recipe, changed at the paths of a grid or a list.

    recipe: base.yml              # or the recipe itself
    out: runs                     # the folder that gets one folder for each member
    grid:                         # every combination
      models.1.parameters.weight: [0.3, 0.5]
      parameters.density: [0.2, 0.5]
    list:                         # one set of values each; with a grid, every set with all of it
      - {merge_method: ties}
    name: "w{weight}-d{density}"  # else made of all values

Relative paths start at the current folder, as in a recipe. Models are not opened.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from merge_worker.errors import UsageError as RecipeError
from merge_worker.messages import nearest, printable
from merge_worker.recipe import parse
from merge_worker.recipe.places import Place, PlaceError, base_recipe, labels, recipe_text
from merge_worker.recipe.yaml_document import read_documents
from merge_worker.registry import OWN, Registry

from ..errors import UsageError, refuse
from ..job.job import KEPT_OF_NAME
from ..job.source import Merge, absolute, decoded, safe_name

KEYS = ("recipe", "out", "grid", "list", "name")
MOST_MEMBERS = 10_000
"""More are a mistake in the grid."""
LONGEST_NAME = 60


@dataclass(frozen=True)
class Member:
    """One merge of a sweep, with the values that make it differ, by label."""

    name: str
    values: Mapping[str, Any]
    merge: Merge


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read. `out` is absolute and holds one folder for each member."""

    path: str
    out: str
    labels: tuple[str, ...]
    members: tuple[Member, ...]
    warnings: tuple[str, ...]


def read_sweep(path: str, out: str | None, folder: str, methods: Registry = OWN) -> Sweep:
    """Read a sweep file; `methods` are those that its recipes can name.

    Raises UsageError with every fault of the file, and of all members.
    """
    table = _read_table(path)
    base = base_recipe(table["recipe"], path, folder)
    rows = list(_rows(table, path))
    places = list(dict.fromkeys(place for row in rows for place in row))
    label_of = dict(zip(places, labels([place.parts for place in places]), strict=True))
    values = [{label_of[place]: value for place, value in row.items()} for row in rows]
    names = _member_names(table.get("name"), values, path)
    target = absolute(str(out or table.get("out") or Path(path).stem), folder)
    faults: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    members = []
    for row, labeled, name, job_name in zip(rows, values, names, job_names(names), strict=True):
        try:
            text = recipe_text(base, row)
            recipe = parse(text, f"{path}: {name}", Path(folder), methods)
        except (RecipeError, PlaceError) as error:
            faults += [(name, entry) for entry in error_entries(error)]
            continue
        for line in recipe.warnings:
            ignored = any(place.begins(_without_place(line, name)) for place in row)
            (faults if ignored else warnings).append((name, line))
        out = str(Path(target) / name)
        merge = Merge(text.encode(), recipe, out, folder, job_name)
        members.append(Member(name, labeled, merge))
    refuse(group_lines(path, len(rows), faults))
    refuse(list(_duplicates(members, path)))
    grouped = group_lines(path, len(rows), warnings)
    return Sweep(path, target, tuple(label_of.values()), tuple(members), tuple(grouped))


def error_entries(error: Exception) -> list[str]:
    """Split an error into its faults; indented lines belong to the fault above them."""
    return re.split(r"\n(?! )", str(error))


def group_lines(path: str, count: int, lines: Sequence[tuple[str, str]]) -> list[str]:
    """Merge equal lines of several members, given as (name, line), into one that names them.

    `count` is the number of all members.
    """
    names_of: dict[str, list[str]] = {}
    for name, line in lines:
        names_of.setdefault(_without_place(line, name), []).append(name)
    grouped = []
    for line, names in names_of.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        subject = "every member" if 1 < count == len(names) else f"{names[0]}{more}"
        grouped.append(f"{path}: {subject}: {line}")
    return grouped


def _without_place(line: str, name: str) -> str:
    """Drop file and line number: they are those of a recipe that the user never saw."""
    return re.sub(rf"^.*?: {re.escape(name)}:(\d+:)? *", "", line.strip())


def _read_table(path: str) -> dict[str, Any]:
    try:
        text = decoded(Path(path).expanduser().read_bytes(), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give the file of a sweep") from None
    documents = read_documents(text, path)
    table = documents[0].value if len(documents) == 1 else None
    if not isinstance(table, dict) or "recipe" not in table:
        raise UsageError(f"{path}: a sweep is a mapping with 'recipe' and 'grid' or 'list'")
    unknown = [str(key) for key in table if key not in KEYS]
    not_text = [key for key in ("out", "name") if not isinstance(table.get(key, ""), str)]
    refuse(
        [f"{path}: unknown key '{printable(key)}'{nearest(key, KEYS)}" for key in unknown]
        + [f"{documents[0].place(key)} is given twice" for key in documents[0].duplicates]
        + [f"{path}: '{key}' must be text" for key in not_text]
    )
    return table


def _rows(table: Mapping[str, Any], path: str) -> Iterator[dict[Place, Any]]:
    """Yield the values of each member by place."""
    grid, sets = table.get("grid") or {}, table.get("list") or [{}]
    faults = []
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        faults.append(f"{path}: 'grid' must have a list of values for each path")
    if not isinstance(sets, list) or not all(isinstance(entry, dict) for entry in sets):
        faults.append(f"{path}: 'list' must be a list of mappings from path to value")
    if not grid and sets == [{}]:
        faults.append(f"{path}: nothing varies; give 'grid' or 'list'")
    refuse(faults)
    count = len(sets) * math.prod(len(values) for values in grid.values())
    if count > MOST_MEMBERS:
        limit = f"more than {MOST_MEMBERS}; make the grid smaller"
        raise UsageError(f"{path}: {count} members, {limit}")
    axes = [(Place.read(str(key), path), values) for key, values in grid.items()]
    for entry in sets:
        row = {Place.read(str(key), path): value for key, value in entry.items()}
        both = [place.text for place, _ in axes if place in row]
        refuse([f"{path}: {text} is both in 'grid' and in 'list'" for text in both])
        for values in itertools.product(*(values for _, values in axes)):
            yield {**row, **dict(zip((place for place, _ in axes), values, strict=True))}


def _duplicates(members: Sequence[Member], path: str) -> Iterator[str]:
    first: dict[bytes, str] = {}
    for member in members:
        if other := first.get(member.merge.text):
            yield f"{path}: {member.name} is the same recipe as {other}; drop one of them"
        first.setdefault(member.merge.text, member.name)


def _member_names(pattern: str | None, rows: Sequence[Mapping[str, Any]], path: str) -> list[str]:
    names = [member_name(pattern, values, path) for values in rows]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name}-{_digest(json.dumps(values, default=str))}"
        for name, values in zip(names, rows, strict=True)
    ]


def job_names(names: Sequence[str]) -> list[str]:
    """Return a name for the job of each member; they differ in the part that every job keeps."""
    if len({name[:KEPT_OF_NAME] for name in names}) == len(names):
        return list(names)
    return [f"m{number}-{name}" for number, name in enumerate(names, 1)]


def member_name(pattern: str | None, values: Mapping[str, Any], where: str) -> str:
    """Return a safe folder name: `weight_0.3-density_0.5`, or the sweep's own pattern filled in."""
    if pattern is None:
        text = "-".join(f"{label}_{name_of_value(value)}" for label, value in values.items())
    else:
        text = re.sub(r"\{([^{}]*)\}", lambda match: _filled(match[1], values, where), pattern)
    name = safe_name(text)
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 7].rstrip('-._')}-{_digest(text)}"
    return name


def _filled(label: str, values: Mapping[str, Any], where: str) -> str:
    if label not in values:
        hint = f"{nearest(label, values)}; known are {', '.join(f'{{{key}}}' for key in values)}"
        raise UsageError(f"{where}: name: unknown placeholder '{{{printable(label)}}}'{hint}")
    return name_of_value(values[label])


def name_of_value(value: Any) -> str:
    """Return a value as part of a name: `0.3`, `true`, the last folder of a path, `0-0.5`."""
    if isinstance(value, str):
        return PurePosixPath(value).name or value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return "-".join(map(name_of_value, value))
    if isinstance(value, int | float):
        # Names separate values by '-', which would hide a minus.
        return str(value).replace("-", "m")
    return _digest(json.dumps(value, default=str))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
