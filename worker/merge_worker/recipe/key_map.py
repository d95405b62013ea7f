"""Layouts that the same tensors have on disk: under which names, split or fused, which way round.

A rule lists layouts of a group of tensors. Names are templates: `{e}` is a number that a layout has
in its names or stacks along a first axis; all else in braces is carried over.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

_AFTER_WORDS = r"(?:(?<=[\s\S]\.)|(?<![\s\S]))"
"""Behind `{_}`: words that end in a dot, or nothing."""

NUMBER = "[0-9]{1,5}"
"""The number of a tensor in a stack; longer ones count nothing that a file can hold."""

ANY = "{_}"
"""What stands before a name of the tables: nothing, or words that end in a dot."""


class Layout(NamedTuple):
    """The names of a group of tensors: one for each, or one that holds all of them, fused.

    Fused tensors lie along `axis` one after the other, or in turns if `interleaved`, or in `groups`
    one after the other, each with its share of all. `transposed` ones have rows and columns
    exchanged, and `axis` counts after that. A layout with a `sibling` holds only where there is a
    tensor whose name goes on like this.
    """

    names: tuple[str, ...]
    axis: int = 0
    interleaved: bool = False
    transposed: bool = False
    sibling: str = ""
    groups: int = 1


@dataclass(frozen=True)
class LayoutRule:
    """The layouts of one group; `stacked` is the wildcard that numbers the tensors of a stack."""

    layouts: tuple[Layout, ...]
    stacked: str = "e"

    @cached_property
    def size(self) -> int:
        """Number of tensors of the group."""
        return max(len(layout.names) for layout in self.layouts)

    @cached_property
    def stacks(self) -> bool:
        return any(self.is_numbered(name) for layout in self.layouts for name in layout.names)

    def is_numbered(self, template: str) -> bool:
        return f"{{{self.stacked}}}" in template


Key = tuple[tuple[str, str], ...]
"""The values of the wildcards that are carried over."""

Members = dict[tuple[int, int], str]
"""Names by place in the layout and number in the stack (0 where none is in the name)."""


def find(rule: LayoutRule, names: Sequence[str]) -> dict[Key, dict[Layout, Members]]:
    """Find the tensors of each layout of a rule among sorted names, by key."""
    instances: dict[Key, dict[Layout, Members]] = {}
    for layout in rule.layouts:
        for place, template in enumerate(layout.names):
            compiled = _template(template, rule.stacked)
            for name in names:
                values = compiled.match(name)
                if values is None:
                    continue
                if layout.sibling and not _begins(names, values["_"] + layout.sibling):
                    continue
                number = int(values.pop(rule.stacked, 0))
                key = tuple(sorted(values.items()))
                instances.setdefault(key, {}).setdefault(layout, {})[place, number] = name
    return instances


def match(
    rule: LayoutRule, layout: Layout, name: str, names: Sequence[str]
) -> tuple[Key, int, int | None] | None:
    """Return key, place and number of `name` in a layout of a model with the sorted `names`.

    The number is None where the layout stacks; the result is None if the name does not fit.
    """
    for place, template in enumerate(layout.names):
        values = _template(template, rule.stacked).match(name)
        if values is None:
            continue
        if layout.sibling and not _begins(names, values["_"] + layout.sibling):
            continue
        number = values.pop(rule.stacked, None)
        return tuple(sorted(values.items())), place, None if number is None else int(number)
    return None


def _begins(names: Sequence[str], beginning: str) -> bool:
    place = bisect_left(names, beginning)
    return place < len(names) and names[place].startswith(beginning)


def missing(rule: LayoutRule, layout: Layout, members: Members, key: Key) -> list[str]:
    """Return names of the layout that are not among its members."""
    numbers = range(max(number for _, number in members) + 1)
    return [
        name_of(layout.names[place], key, rule, number)
        for place in range(len(layout.names))
        for number in numbers
        if (place, number) not in members
    ]


def name_of(template: str, key: Key, rule: LayoutRule, number: int = 0) -> str:
    values = {**dict(key), rule.stacked: str(number)}
    return re.sub(r"\{(\w+)\}", lambda hit: values[hit.group(1)], template)


def wildcards(template: str) -> list[str]:
    """Return the names in braces. Raises ValueError for one that is not a name."""
    names = re.findall(r"\{(.*?)\}", template)
    for name in names:
        if not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"'{{{name}}}' is not a wildcard; give it a name, like {{x}}")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"'{{{twice[0]}}}' stands twice in '{template}'; give each a name")
    return names


class _Chunk(NamedTuple):
    """A part of a template between two wildcards that take anything."""

    begin: str  # its text before any other wildcard
    pattern: re.Pattern[str]

    def last_in(self, name: str, stop: int, *, first: bool, last: bool) -> re.Match[str] | None:
        """Return the last place before `stop` that fits: from the start if it is the `first` chunk
        of a template, to the end if it is the `last`."""
        match = self.pattern.fullmatch if last else self.pattern.match
        if first:
            return match(name, 0, stop) if stop >= 0 else None
        before = stop
        while before >= 0 and (start := name.rfind(self.begin, 0, before)) >= 0:
            if hit := match(name, start, stop):
                return hit
            before = start + len(self.begin) - 1
        return None


class _Template:
    """A template of names. Each wildcard takes as much as it can, the first before the others.

    A regular expression does the same, but may try every way to share a name between wildcards.
    Here each chunk goes as far to the right as it can, the last one first: this gives the first
    wildcards the most, and where it fails, nothing fits.
    """

    def __init__(self, template: str, stacked: str) -> None:
        words = re.split(r"\{(\w+)\}", template)
        self.literal = max(words[::2], key=len)
        self.wildcards: list[str] = []
        self.chunks: list[_Chunk] = []
        begin, text = words[0], re.escape(words[0])
        for wildcard, literal in zip(words[1::2], words[2::2], strict=True):
            if wildcard in (stacked, "_w"):
                inner = NUMBER if wildcard == stacked else "weight|bias"
                text += f"(?P<{wildcard}>{inner}){re.escape(literal)}"
            else:
                self.wildcards.append(wildcard)
                self.chunks.append(_Chunk(begin, re.compile(text)))
                begin = literal
                text = (_AFTER_WORDS if wildcard == "_" else "") + re.escape(literal)
        self.chunks.append(_Chunk(begin, re.compile(text)))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the values of all wildcards, if a whole name fits."""
        if self.literal not in name:
            return None
        values: dict[str, str] = {}
        begun = stop = len(name)  # where the chunk behind begins, and where this one ends at most
        for number in range(len(self.wildcards), -1, -1):
            last = number == len(self.wildcards)
            hit = self.chunks[number].last_in(name, stop, first=number == 0, last=last)
            if hit is None:
                return None
            values |= hit.groupdict()
            if not last:
                values[self.wildcards[number]] = name[hit.end() : begun]
            begun = hit.start()
            stop = begun - (number > 0 and self.wildcards[number - 1] != "_")
        return values


_template = lru_cache(maxsize=1024)(_Template)


def without_numbers(key: Key) -> Key:
    """Return what the keys of all layers of one kind have in common."""
    return tuple((name, re.sub(r"(?<![^.])\d+(?![^.])", "*", value)) for name, value in key)


def parse_rule(rule: Mapping[str, object]) -> LayoutRule:
    """Parse a rule of a recipe: `from` and `to`, names or lists of names. Raises ValueError."""
    known = ("from", "to", "axis", "transpose", "groups", "model")
    if unknown := [key for key in rule if key not in known]:
        raise ValueError(f"'{unknown[0]}' is unknown in a rule; it has {', '.join(known)}")
    names = {}
    for side in ("from", "to"):
        given = rule.get(side)
        listed = given if isinstance(given, list) else [given]
        if not listed or not all(isinstance(n, str) and n for n in listed):
            raise ValueError(f"'{side}' is a tensor name with wildcards like {{x}}, or a list")
        names[side] = tuple(str(name) for name in listed)
    if len(names["from"]) > 1 and len(names["to"]) > 1:
        raise ValueError("several names on both sides; write one rule for each")
    sets = {side: {frozenset(wildcards(n)) for n in names[side]} for side in names}
    if any(len(different) > 1 for different in sets.values()):
        raise ValueError("names of one side have different wildcards")
    extra = sets["from"].pop() ^ sets["to"].pop()
    if len(extra) > 1:
        listed_names = ", ".join(f"{{{name}}}" for name in sorted(extra))
        raise ValueError(f"{listed_names} stand on one side only; one may, which is stacked")
    axis = rule.get("axis", 0)
    if type(axis) is not int or axis < 0:
        raise ValueError(f"axis {axis!r} is not 0 or a larger whole number")
    transposed = rule.get("transpose", False)
    if not isinstance(transposed, bool):
        raise ValueError(f"transpose {transposed!r} is neither true nor false")
    groups = rule.get("groups", 1)
    if type(groups) is not int or groups < 1 or (groups > 1 and len(sum(names.values(), ())) < 3):
        raise ValueError(
            f"groups {groups!r} is not a number of groups; one tensor must hold several"
        )
    before = Layout(names["from"], axis, transposed=transposed, groups=groups)
    after = Layout(names["to"], axis, groups=groups)
    return LayoutRule((before, after), stacked=next(iter(extra), ""))
