"""The names that a class of transformers gives the tensors of a file in memory. No torch.

`names_in_memory.json`, which `scripts/names_in_memory.py` writes, has a row for each class whose
names differ: the beginning of its names, and lists of steps, each with the module for whose tensors
it holds (null: all), and patterns of tensors that are others, which files therefore leave out. A
step is [pattern, name] for a renaming, or [patterns, names, way]:

- rename: several renamings, which hold only if the first pattern is there
- join: the tensors of all patterns lie one below the other in one
- stack: so do they for each number of an expert, all of which are stacked
- split: the names are equal parts, one below the other, of one tensor
- other: the elements lie in another order or form

As transformers does, all renamings apply in order, then the first of the other ways that fits.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

Holders = tuple[tuple[str, ...], ...]
"""Names of the tensors that hold a parameter: for each expert, its parts one below the other."""


class Part(NamedTuple):
    """Part `place` of `size` that lie one below the other in `holder`, or in matrix `expert`."""

    holder: str
    place: int
    size: int
    expert: int | None


@dataclass
class InMemory:
    """The tensors of a file by their names in memory."""

    holders: dict[str, Holders] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Tensors whose elements lie otherwise in the file, which no other name can show."""
    shared: Sequence[str] = ()
    """Patterns of tensors that are others."""

    def names(self) -> Iterator[str]:
        yield from self.holders
        yield from self.parts

    def is_changed(self, module: str) -> bool:
        return any(name.rpartition(".")[0] == module for name in self.changed)

    def is_shared(self, module: str) -> bool:
        return any(re.match(pattern, f"{module}.weight") for pattern in self.shared)


class _Step(NamedTuple):
    begin: str
    """What stands before the names of the class, of which a file may have nothing."""
    module: str | None
    patterns: Sequence[re.Pattern[str]]
    names: Sequence[str]
    way: str

    def renamed(self, name: str) -> tuple[int, list[str], str] | None:
        """Return the pattern that fits, all new names of a tensor, and what was replaced."""
        before = ""
        if self.module is not None:
            module = f"{self.module}." if self.module else ""
            long = f"{self.begin}.{module}" if self.begin else module
            if not name.startswith((long, module)):
                return None
            before = long if name.startswith(long) else module
        rest = name.removeprefix(before)
        for place, pattern in enumerate(self.patterns):
            if hit := pattern.search(rest):
                group = hit[1] if pattern.groups else ""
                all_names = self.way in ("split", "other")
                ends = self.names if all_names else (self.names[self._name_of(place)],)
                new = [rest.replace(hit[0], end.replace(r"\1", group), 1) for end in ends]
                return place, [before + end for end in new], hit[0]
        return None

    def _name_of(self, place: int) -> int:
        return place if self.way == "rename" else 0


def in_memory(names: Iterable[str], config: Mapping[str, Any]) -> InMemory:
    """Return the names that the class of a config gives tensors; none if they are the same."""
    listed = config.get("architectures")
    model = str(listed[0]) if isinstance(listed, list) and listed else ""
    steps, found = _steps(model), InMemory(shared=_table()["ties"].get(model, ()))
    if not steps:
        return found
    renamed = {name: name for name in names}
    for step in steps:
        if step.way == "rename":
            hits = {name: hit for name, new in renamed.items() if (hit := step.renamed(new))}
            if any(place == 0 for place, _, _ in hits.values()):
                renamed |= {name: new[0] for name, (_, new, _) in hits.items()}
    others = [step for step in steps if step.way != "rename"]
    groups: dict[tuple[str, str], dict[tuple[int, int], str]] = {}
    for name, new in renamed.items():
        found_step = next(((step, hit) for step in others if (hit := step.renamed(new))), None)
        if found_step is None:
            found.holders.setdefault(new, ((name,),))
            continue
        step, hit = found_step
        if step.way == "split":
            size = len(hit[1])
            found.parts |= {n: Part(name, place, size, None) for place, n in enumerate(hit[1])}
        elif step.way == "other":
            found.changed.update(hit[1])
        else:
            number = re.findall(r"\.(\d+)\.", hit[2])[-1] if step.way == "stack" else 0
            groups.setdefault((hit[1][0], step.way), {})[int(number), hit[0]] = name
    for (new, _), members in groups.items():
        experts: dict[int, list[str]] = {}
        for (number, _), name in sorted(members.items()):
            experts.setdefault(number, []).append(name)
        found.holders[new] = tuple(map(tuple, experts.values()))
    return found


def _steps(model: str) -> list[_Step]:
    table = _table()
    row = table["classes"].get(model)
    if row is None:
        return []
    steps = []
    for module, key in row[1:]:
        for patterns, names, *way in table["lists"][key]:
            if not way:
                patterns, names, way = [patterns], [names], ["rename"]
            compiled = [re.compile(pattern) for pattern in patterns]
            steps.append(_Step(row[0], module, compiled, names, way[0]))
    return steps


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(
        pkgutil.get_data(__package__, "names_in_memory.json") or b"{}"
    )
    return table
