"""SWEEP.yml → its members: one base recipe, changed at the paths of a grid or a list.

    recipe: base.yml              # or the recipe itself
    out: runs                     # the folder that gets one folder for each member
    grid:                         # every combination
      models.1.parameters.weight: [0.3, 0.5]
      parameters.density: [0.2, 0.5]
    list:                         # one set of values each; with a grid, every set with all of it
      - {merge_method: ties}
    name: "w{weight}-d{density}"  # else made of all values

Relative paths start at the current folder, here as in a recipe. No model is looked at.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from merge_worker.errors import UsageError as Invalid
from merge_worker.messages import nearest, printable

from ..errors import UsageError, refuse
from ..job.source import Merge, absolute, decoded, safe_name

# MERGED A place in a recipe, such as `models.1.parameters.weight`, and putting a value there.


EVERY = "*"
PART = r'"([^"]+)"|([^."\[\]]+)'


class PathFault(ValueError):
    """A recipe without such a place."""


@dataclass(frozen=True)
class Place:
    """`parts` are keys, positions from 0, and '*' for every entry of a list."""

    text: str
    parts: tuple[str, ...]

    @classmethod
    def read(cls, text: str, where: str) -> Place:
        """`a.1.b`, `a[1].b` or `a."b.c"`. UsageError."""
        plain = re.sub(r"\[(\d+|\*)\]", r".\1", text)
        if not re.fullmatch(rf"({PART})(\.({PART}))*", plain):
            raise UsageError(
                f"{where}: '{printable(text)}' is no path; give one such as "
                f'models.1.parameters.weight, with "quotes" around a key that has a dot'
            )
        return cls(text, tuple(quoted or bare for quoted, bare in re.findall(PART, plain)))

    def is_of(self, text: str) -> bool:
        """Whether a sentence of the worker begins with this place: `models[1].parameters.x: …`."""
        named = re.sub(r"\[(\d+)\]", r".\1", text.partition(": ")[0]).split(".")
        return len(named) == len(self.parts) and all(
            own in (EVERY, other) for own, other in zip(self.parts, named, strict=True)
        )


def put(recipe: Any, place: Place, value: Any) -> None:
    """Set a value in a recipe of plain values; mappings on the way that are missing are made."""
    _put(recipe, place.parts, value, place.text)


def _put(node: Any, parts: tuple[str, ...], value: Any, text: str) -> None:
    part, rest = parts[0], parts[1:]
    if isinstance(node, list):
        for position in _positions(node, part, text):
            if rest:
                _put(node[position], rest, value, text)
            else:
                node[position] = value
    elif isinstance(node, dict):
        if not rest:
            node[part] = value
            return
        if node.get(part) is None:
            if rest[0].isdecimal() or rest[0] == EVERY:
                raise PathFault(f"{text}: the base recipe has no list '{part}'")
            node[part] = {}
        _put(node[part], rest, value, text)
    else:
        raise PathFault(f"{text}: '{part}' would be within {printable(repr(node))[:40]}")


def _positions(node: list[Any], part: str, text: str) -> range:
    if part == EVERY:
        return range(len(node))
    if not part.isdecimal():
        raise PathFault(f"{text}: '{part}' must be a position of a list (0 to {len(node) - 1})")
    if int(part) >= len(node):
        raise PathFault(f"{text}: {part} is beyond a list of {len(node)} (0 to {len(node) - 1})")
    return range(int(part), int(part) + 1)


# MERGED What swept values and members are called.


LONGEST = 60
SILENT = ("parameters",)
"""Steps of a path that tell people nothing."""


def labels(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    telling = [tuple(p for p in path if p not in SILENT) or path for path in paths]
    if len(set(telling)) < len(telling):
        telling = list(paths)
    found = []
    for path in telling:
        length = 1
        while length < len(path) and (
            sum(other[-length:] == path[-length:] for other in telling) > 1
            or not path[-length][0].isalpha()
        ):
            length += 1
        found.append(".".join(path[-length:]))
    return found


def member_name(pattern: str | None, values: Mapping[str, Any], where: str) -> str:
    """`weight_0.3-density_0.5`, or what the sweep's own pattern makes. A safe name of a folder."""
    if pattern is None:
        text = "-".join(f"{label}_{value_word(value)}" for label, value in values.items())
    else:
        text = re.sub(r"\{([^{}]*)\}", lambda m: _filled(m[1], values, where), pattern)
    name = safe_name(text)
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 7].rstrip('-._')}-{digest(text)}"
    return name


def _filled(label: str, values: Mapping[str, Any], where: str) -> str:
    if label not in values:
        known = ", ".join(f"{{{each}}}" for each in values)
        raise UsageError(
            f"{where}: name: nothing is called '{{{printable(label)}}}'"
            f"{nearest(label, values)}; there is {known}"
        )
    return value_word(values[label])


def value_word(value: Any) -> str:
    """A value as a part of a name: `0.3`, `true`, a model's last folder, `0-0.5-1` of a list."""
    if isinstance(value, str):
        return PurePosixPath(value).name or value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return "-".join(value_word(each) for each in value)
    if isinstance(value, int | float):
        # A minus would be lost beside the signs that separate.
        return str(value).replace("-", "m")
    return digest(json.dumps(value, default=str))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


KEYS = ("recipe", "out", "grid", "list", "name")
MOST = 10_000
"""Members. More is a mistake in the grid."""


@dataclass(frozen=True)
class Member:
    """One merge of a sweep. `values` are those that make it differ, by short label."""

    name: str
    values: Mapping[str, Any]
    merge: Merge


@dataclass(frozen=True)
class Sweep:
    """`out` is absolute; members have names of their own below it."""

    where: str
    out: str
    labels: tuple[str, ...]
    members: tuple[Member, ...]
    warnings: tuple[str, ...]

    @property
    def stem(self) -> str:
        return Path(self.where).stem


def read_sweep(word: str, out: str | None, folder: str) -> Sweep:
    """UsageError lists every fault of the file, and of all members together."""
    table = _table(word)
    base = _base(table["recipe"], word, folder)
    rows = list(_rows(table, word))
    places = list(dict.fromkeys(place for row in rows for place in row))
    short = dict(zip(places, labels([place.parts for place in places]), strict=True))
    chosen = [{short[place]: value for place, value in row.items()} for row in rows]
    names = _names(table.get("name"), chosen, word)
    target = absolute(str(out or table.get("out") or Path(word).stem), folder)
    faults: list[tuple[str, str]] = []
    warnings: list[tuple[str, str]] = []
    members = []
    for row, values, name in zip(rows, chosen, names, strict=True):
        try:
            text = _text(base, row)
            merge = _merge(text, f"{word}: {name}", str(Path(target) / name), folder)
        except (Invalid, PathFault) as error:
            faults += [(name, line) for line in re.split(r"\n(?! )", str(error))]
            continue
        for line in merge.recipe.warnings:
            in_vain = any(place.is_of(_plain(line, name)) for place in row)
            (faults if in_vain else warnings).append((name, line))
        members.append(Member(name, values, merge))
    refuse(gathered(word, len(rows), faults))
    refuse(list(_same(members, word)))
    told = gathered(word, len(rows), warnings)
    return Sweep(word, target, tuple(short.values()), tuple(members), tuple(told))


def gathered(where: str, count: int, held: Sequence[tuple[str, str]]) -> list[str]:
    """Lines about members, given by name, each told once with whose it is."""
    found: dict[str, list[str]] = {}
    for name, line in held:
        found.setdefault(_plain(line, name), []).append(name)
    lines = []
    for line, names in found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        whose = "every member" if 1 < count == len(names) else f"{names[0]}{more}"
        lines.append(f"{where}: {whose}: {line}")
    return lines


def _plain(line: str, name: str) -> str:
    """Without the place in a text that nobody has seen."""
    return re.sub(rf"^.*?: {re.escape(name)}:(\d+:)? *", "", line.strip())


def _table(word: str) -> dict[str, Any]:
    from merge_worker.recipe.yaml_document import read_documents

    try:
        text = decoded(Path(word).expanduser().read_bytes(), word)
    except OSError as error:
        raise UsageError(f"{word}: {error.strerror}; give the file of a sweep") from None
    documents = read_documents(text, word)
    table = documents[0].value if len(documents) == 1 else None
    if not isinstance(table, dict) or "recipe" not in table:
        raise UsageError(f"{word}: a sweep is a mapping with 'recipe' and 'grid' or 'list'")
    faults = [
        f"{word}: nothing reads '{printable(str(key))}'{nearest(str(key), KEYS)}"
        for key in table
        if key not in KEYS
    ]
    if documents[0].duplicates:
        faults += [f"{documents[0].place(path)} stands twice" for path in documents[0].duplicates]
    for key in ("out", "name"):
        if not isinstance(table.get(key, ""), str):
            faults.append(f"{word}: '{key}' must be text")
    refuse(faults)
    return table


def _base(given: Any, word: str, folder: str) -> Any:
    """The base recipe as plain values."""
    from merge_worker.recipe.yaml_document import read_documents

    if isinstance(given, dict):
        return given
    if not isinstance(given, str):
        raise UsageError(f"{word}: 'recipe' must be the path of a recipe, or the recipe itself")
    path = absolute(given, folder)
    try:
        documents = read_documents(decoded(Path(path).read_bytes(), given), given)
    except OSError as error:
        raise UsageError(f"{word}: recipe {given}: {error.strerror}") from None
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise UsageError(f"{given}: the base of a sweep is one document with one mapping")
    return documents[0].value


def _rows(table: Mapping[str, Any], word: str) -> Iterator[dict[Place, Any]]:
    """The values of each member by place."""
    grid, sets = table.get("grid") or {}, table.get("list") or [{}]
    faults = []
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        faults.append(f"{word}: 'grid' must have a list of values for each path")
    if not isinstance(sets, list) or not all(isinstance(each, dict) for each in sets):
        faults.append(f"{word}: 'list' must be a list of mappings from path to value")
    if not grid and sets == [{}]:
        faults.append(f"{word}: nothing varies; give 'grid' or 'list'")
    refuse(faults)
    count = len(sets) * math.prod(len(values) for values in grid.values())
    if count > MOST:
        raise UsageError(f"{word}: {count} members, more than {MOST}; is the grid meant so?")
    axes = [(Place.read(str(path), word), values) for path, values in grid.items()]
    for each in sets:
        row = {Place.read(str(path), word): value for path, value in each.items()}
        twice = [place.text for place, _ in axes if place in row]
        refuse([f"{word}: {text} stands in 'grid' and in 'list'" for text in twice])
        for values in itertools.product(*(values for _, values in axes)):
            yield {**row, **dict(zip((place for place, _ in axes), values, strict=True))}


def _names(pattern: str | None, chosen: Sequence[Mapping[str, Any]], word: str) -> list[str]:
    names = [member_name(pattern, values, word) for values in chosen]
    return [
        name if names.count(name) == 1 else f"{name}-{digest(json.dumps(values, default=str))}"
        for name, values in zip(names, chosen, strict=True)
    ]


def _text(base: Any, row: Mapping[Place, Any]) -> str:
    """A recipe as YAML where that is read back as it was, else as JSON, which always is."""
    import copy

    import yaml

    from merge_worker.recipe.yaml_document import read_documents

    recipe = copy.deepcopy(base)
    for place, value in row.items():
        put(recipe, place, copy.deepcopy(value))
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    same = repr(read_documents(text, "sweep")[0].value) == repr(recipe)
    return text if same else json.dumps(recipe, indent=1, default=str) + "\n"


def _merge(text: str, where: str, out: str, folder: str) -> Merge:
    from merge_worker.recipe import parse

    return Merge(text.encode(), parse(text, where), out, folder)


def _same(members: Sequence[Member], word: str) -> Iterator[str]:
    first: dict[bytes, str] = {}
    for each in members:
        if each.merge.text in first:
            other = first[each.merge.text]
            yield f"{word}: {each.name} is the same recipe as {other}; drop one of them"
        first.setdefault(each.merge.text, each.name)
