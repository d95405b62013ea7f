"""Names that do not match → the rules of `key_map` that would make them match, if there are such.

Two names fit if they have the same numbers and the same shape, and begin or end alike; the words
between are what a rule exchanges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..recipe.key_map import find, name_of, parse_rule
from ..tensors.source import TensorSource

MOST_RULES = 12
"""A recipe with more is not written by hand."""


class _Change(NamedTuple):
    """Words in the middle of names that are others there."""

    before: tuple[str, ...]
    old: tuple[str, ...]
    new: tuple[str, ...]
    after: tuple[str, ...]


def suggest_rules(lost: Sequence[TensorSource], more: Sequence[TensorSource]) -> str | None:
    """Lines for a recipe that give all tensors `more` the names of `lost`; None if unclear."""
    wanted, there = _kinds(lost), _kinds(more)
    rules: dict[str, str] = {}
    for kind, shapes in wanted.items():
        fits = [_change(other, kind) for other in there if there[other] == shapes]
        best = max((_alike(fit) for fit in fits if fit), default=(0, 0))
        chosen = [fit for fit in fits if fit and _alike(fit) == best]
        if len(chosen) != 1:
            return None
        old, new = _rule(chosen[0])
        if rules.setdefault(old, new) != new:
            return None
    if not rules or len(rules) > MOST_RULES:
        return None
    if not {source.name for source in lost} <= _applied(rules, more):
        return None
    lines = [f"  - {{from: {json.dumps(o)}, to: {json.dumps(n)}}}" for o, n in rules.items()]
    return "\n".join(["key_map:", *lines])


def _applied(rules: Mapping[str, str], sources: Sequence[TensorSource]) -> set[str]:
    """The names after all rules."""
    names = {source.name for source in sources}
    for old, new in rules.items():
        rule = parse_rule({"from": old, "to": new})
        for key, forms in find(rule, sorted(names)).items():
            for members in forms.values() if rule.forms[0] in forms else ():
                names -= set(members.values())
            names.add(name_of(new, key, rule))
    return names


def _kinds(sources: Sequence[TensorSource]) -> Mapping[tuple[str, ...], Mapping[object, object]]:
    """Names with `*` for numbers, and the shapes by the numbers."""
    found: dict[tuple[str, ...], dict[object, object]] = {}
    for source in sources:
        words = source.name.split(".")
        kind = tuple("*" if word.isdigit() else word for word in words)
        numbers = tuple(word for word in words if word.isdigit())
        found.setdefault(kind, {})[numbers] = source.shape
    return found


def _change(old: tuple[str, ...], new: tuple[str, ...]) -> _Change | None:
    """Return the words left of two names without their common start and end; None if none."""
    least = min(len(old), len(new))
    first = 0
    while first < least and old[first] == new[first]:
        first += 1
    last = 0
    while last < least - first and old[-1 - last] == new[-1 - last]:
        last += 1
    change = _Change(
        old[:first],
        old[first : len(old) - last],
        new[first : len(new) - last],
        old[len(old) - last :],
    )
    numbers = "*" in change.old or "*" in change.new
    return None if numbers or not (change.before or change.after) else change


def _alike(change: _Change) -> tuple[int, int]:
    return len(change.before) + len(change.after), -len(change.old) - len(change.new)


def _rule(change: _Change) -> tuple[str, str]:
    """The rule for a change: as general as it can be without saying something of other names."""
    before, old, new, after = change
    if (not old or not new) and after:
        old, new, after = (*old, after[0]), (*new, after[0]), after[1:]
    elif not old or not new:
        old, new, before = (before[-1], *old), (before[-1], *new), before[:-1]
    begin, end = ("{a}.",) if before else (), (".{b}",) if after else ()
    sides = ["".join([*begin, ".".join(words), *end]) for words in (old, new)]
    return re.sub(r"\*", "{n}", sides[0]), re.sub(r"\*", "{n}", sides[1])
