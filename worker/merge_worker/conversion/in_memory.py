"""The names that a class of transformers gives the tensors of a file in memory. No torch.

`names_in_memory.json`, which `scripts/names_in_memory.py` writes, has a row for each class whose
names differ: how they begin, the first words of all, and lists of steps, each with the module for
whose tensors it holds (null: all). It also has patterns of tensors that are others, which files
leave out. A step is [pattern, name] for a renaming, or [patterns, names, way]:

- rename: several renamings, which hold only if the first pattern is there
- join: the tensors of all patterns lie one below the other in one
- stack: so do they for each number of an expert, all of which are stacked
- split: the names are equal parts, one below the other, of one tensor; with a section of the
  config and a flag for each name, files interleave the halves of its heads where the flag is set
- heads: so are they, with as many heads each as the config has
- other: the elements lie in another order or form

As transformers does, all renamings apply in order, then the first of the other ways that fits.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

from ..checkpoint.folder import Checkpoint
from ..tensors.row_gather import RowMap, gather_rows
from ..tensors.source import TensorSource
from ..tensors.views import concat, reshape, slice_axis

Holders = tuple[tuple[str, ...], ...]
"""Names of the tensors that hold a parameter: for each expert, its parts one below the other."""


class Part(NamedTuple):
    """Part `place` of `size` that lie one below the other in `holder`, or in matrix `expert`.

    With `rope_heads`, the holder interleaves the halves of so many heads (see `rope_order`).
    """

    holder: str
    place: int
    size: int
    expert: int | None
    by_heads: bool = False
    rope_heads: int = 0


@dataclass
class InMemory:
    """The tensors of a file by their names in memory."""

    holders: dict[str, Holders] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    stacked: set[str] = field(default_factory=set)
    """Names in `holders` of parameters with an axis of experts."""
    changed: dict[str, str] = field(default_factory=dict)
    """Tensors of files by the names that they have in memory, with their elements elsewhere."""
    shared: Sequence[str] = ()
    """Patterns of tensors that are others."""

    def __bool__(self) -> bool:
        return bool(self.holders or self.parts or self.changed)

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
    rope_heads: Sequence[int] = ()
    """For each name the heads whose halves files interleave, or 0; empty: for none."""

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
                group = (hit[1] or "") if pattern.groups else ""
                all_names = self.way in ("split", "heads", "other")
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
    begin, roots, *lists = _table()["classes"].get(model, ("", ()))
    found = InMemory(shared=_table()["ties"].get(model, ()))
    steps = _steps(begin, lists, config)
    if not steps:
        return found

    def rooted(name: str) -> str:
        """Give a name the beginning that it lacks, or take away one that the class lacks."""
        if name.partition(".")[0] in roots:
            return name
        return name.removeprefix(f"{begin}.") if name.startswith(f"{begin}.") else f"{begin}.{name}"

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
            found.holders.setdefault(rooted(new), ((name,),))
            continue
        step, hit = found_step
        ends = [rooted(end) for end in hit[1]]
        if step.way in ("split", "heads"):
            facts = (len(ends), None, step.way == "heads")
            rope_heads = step.rope_heads or [0] * len(ends)
            found.parts |= {
                end: Part(name, place, *facts, rope_heads[place]) for place, end in enumerate(ends)
            }
        elif step.way == "other":
            found.changed |= dict.fromkeys(ends, name)
        else:
            number = re.findall(r"\.(\d+)\.", hit[2])[-1] if step.way == "stack" else 0
            groups.setdefault((ends[0], step.way), {})[int(number), hit[0]] = name
    for (new, way), members in groups.items():
        found.stacked.update([new] if way == "stack" else [])
        experts: dict[int, list[str]] = {}
        for (number, _), name in sorted(members.items()):
            experts.setdefault(number, []).append(name)
        found.holders[new] = tuple(map(tuple, experts.values()))
    return found


def as_in_memory(model: Checkpoint, found: InMemory) -> Checkpoint:
    """Return a model with the tensors that its class has in memory.

    Tensors with their elements elsewhere keep the names that they have in files.
    """
    tensors: dict[str, TensorSource] = {}
    for name, holders in found.holders.items():
        parts = [model.tensors[part] for part in chain(*holders)]
        joined = concat(parts, 0, name) if len(parts) > 1 else parts[0]
        count, (rows, *sides) = len(holders), joined.shape or (1,)
        shape = (count, rows // count, *sides) if name in found.stacked else joined.shape
        tensors[name] = reshape(joined, shape, name)
    for name, part in found.parts.items():
        shares = head_shares(model.config) if part.by_heads else [1] * part.size
        holder = model.tensors[part.holder]
        begin, end = (
            holder.shape[0] * sum(shares[:place]) // sum(shares)
            for place in (part.place, part.place + 1)
        )
        tensors[name] = slice_axis(holder, 0, begin, end, name)
        if part.rope_heads:
            order = rope_order(end - begin, part.rope_heads)
            tensors[name] = gather_rows(0, {0: tensors[name]}, RowMap([(0, row) for row in order]))
    tensors |= {name: model.tensors[name] for name in found.changed.values()}
    return replace(model, tensors=tensors)


def rope_order(rows: int, heads: int) -> list[int]:
    """Return the row of a file for each row in memory, where files interleave halves of heads.

    Rotary embeddings turn pairs of rows. Files have those of a pair next to each other; in memory
    the first rows of all pairs of a head come before the second ones.
    """
    size = rows // heads
    return [head + row for head in range(0, rows, size) for row in _halves(size)]


def _halves(size: int) -> list[int]:
    return [*range(0, size, 2), *range(1, size, 2)]


def head_shares(config: Mapping[str, Any]) -> list[int]:
    """Return the numbers of heads of queries, keys and values; none if the config lacks them."""
    text = config.get("text_config")
    section = text if isinstance(text, dict) else config
    words = ("attention", "key_value", "key_value")
    heads = [section.get(f"num_{word}_heads") for word in words]
    return [n for n in heads if type(n) is int and n > 0] if None not in heads else []


def _steps(
    begin: str, lists: Sequence[tuple[str | None, str]], config: Mapping[str, Any]
) -> list[_Step]:
    steps = []
    for module, key in lists:
        for patterns, names, *facts in _table()["lists"][key]:
            if not facts:
                patterns, names, facts = [patterns], [names], ["rename"]
            compiled = [re.compile(pattern) for pattern in patterns]
            way, *turns = facts
            heads = [_heads(config, turns[0]) * turned for turned in turns[1]] if turns else []
            # Without the number of heads, nothing tells where the rows are.
            way = "other" if turns and not any(heads) else way
            steps.append(_Step(begin, module, compiled, names, way, heads))
    return steps


def _heads(config: Mapping[str, Any], section: str | None) -> int:
    part = config.get(section, config) if section else config
    heads = part.get("num_attention_heads") if isinstance(part, dict) else 0
    return heads if type(heads) is int and heads > 0 else 0


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(
        pkgutil.get_data(__package__, "names_in_memory.json") or b"{}"
    )
    return table
