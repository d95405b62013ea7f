"""Names that do not match → the rules of `key_map` that would make them match, if there are any.

Two names fit if they have the same numbers and the same shape, and begin or end alike; the words
between are what a rule exchanges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from ..recipe.key_map import find, name_of, parse_rule
from ..tensors.source import TensorSource

MOST_RULES = 12
"""A recipe with more is not written by hand."""

Words = tuple[str, ...]


class _Change(NamedTuple):
    """Words in the middle of names that are others there."""

    before: Words
    old: Words
    new: Words
    after: Words

    def likeness(self) -> tuple[int, int]:
        return len(self.before) + len(self.after), -len(self.old) - len(self.new)

    def rule(self) -> tuple[str, str]:
        """Return `from` and `to`, as general as they can be without matching other names."""
        before, old, new, after = self
        if (not old or not new) and after:
            old, new, after = (*old, after[0]), (*new, after[0]), after[1:]
        elif not old or not new:
            old, new, before = (before[-1], *old), (before[-1], *new), before[:-1]
        begin, end = "{a}." if before else "", ".{b}" if after else ""
        old_name, new_name = (f"{begin}{'.'.join(w)}{end}".replace("*", "{n}") for w in (old, new))
        return old_name, new_name


def suggest_rules(absent: Sequence[TensorSource], extra: Sequence[TensorSource]) -> str | None:
    """Return lines for a recipe that rename all of `extra` to `absent`; None if unclear."""
    wanted, given = _kinds(absent), _kinds(extra)
    rules: dict[str, str] = {}
    for kind, shapes in wanted.items():
        alike = (_change(other, kind) for other in given if given[other] == shapes)
        fits = [change for change in alike if change]
        most = max((fit.likeness() for fit in fits), default=None)
        best = [fit for fit in fits if fit.likeness() == most]
        if len(best) != 1:
            return None
        old, new = best[0].rule()
        if rules.setdefault(old, new) != new:
            return None
    if not rules or len(rules) > MOST_RULES:
        return None
    if not {source.name for source in absent} <= _applied(rules, extra):
        return None
    lines = [f"  - {{from: {json.dumps(o)}, to: {json.dumps(n)}}}" for o, n in rules.items()]
    return "\n".join(["key_map:", *lines])


def _kinds(sources: Sequence[TensorSource]) -> Mapping[Words, Mapping[Words, object]]:
    """Return shapes by kind (names with `*` for numbers), then by the numbers."""
    kinds: dict[Words, dict[Words, object]] = {}
    for source in sources:
        words = source.name.split(".")
        kind = tuple("*" if word.isdigit() else word for word in words)
        kinds.setdefault(kind, {})[tuple(filter(str.isdigit, words))] = source.shape
    return kinds


def _change(old: Words, new: Words) -> _Change | None:
    """Return the words left of two names without their common start and end; None if unfit."""
    before = _common_start(old, new)
    old, new = old[len(before) :], new[len(before) :]
    after = _common_start(old[::-1], new[::-1])[::-1]
    change = _Change(before, old[: len(old) - len(after)], new[: len(new) - len(after)], after)
    numbers = "*" in change.old or "*" in change.new
    return None if numbers or not (before or after) else change


def _common_start(old: Words, new: Words) -> Words:
    return tuple(
        a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    )


def _applied(rules: Mapping[str, str], sources: Sequence[TensorSource]) -> set[str]:
    """Return the names after all rules."""
    names = {source.name for source in sources}
    for old, new in rules.items():
        rule = parse_rule({"from": old, "to": new})
        for key, instance in find(rule, sorted(names)).items():
            names -= set(instance.get(rule.layouts[0], {}).values())
            names.add(name_of(new, key, rule))
    return names
