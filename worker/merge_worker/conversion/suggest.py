"""Names that do not match → the rules of `key_map` that would make them match, if there are any.

Two names fit if they have the same numbers and the same shape, and begin or end alike; the words
between are what a rule exchanges.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from ..recipe.key_map import find, name_of, parse_rule
from ..tensors.source import TensorSource

MOST_RULES = 12
"""A recipe with more is not written by hand."""

MOST_PAIRS = 100_000
"""Kinds of tensors to compare with each other; models have some dozens."""

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


class Suggestion(NamedTuple):
    """Lines for a recipe, and the names that keep no partner."""

    lines: str
    absent: Sequence[str]
    extra: Sequence[str]


def suggest_rules(
    absent: Sequence[TensorSource], extra: Sequence[TensorSource]
) -> Suggestion | None:
    """Suggest rules that rename `extra` to `absent`, all of one of them; None if unclear."""
    wanted, given = _kinds(absent), _kinds(extra)
    if len(wanted) * len(given) > MOST_PAIRS:
        return None
    of_wanted = [[_change(o, n) for o in given if given[o] == wanted[n]] for n in wanted]
    of_given = [[_change(o, n, 2) for n in wanted if given[o] == wanted[n]] for o in given]
    for changes in (of_wanted, of_given):
        rules = _rules(changes)
        if rules and (suggestion := _suggestion(rules, absent, extra)):
            return suggestion
    return None


def _rules(changes: Iterable[Iterable[_Change | None]]) -> Mapping[str, str] | None:
    """Return the rules of the likeliest change of each tensor; None if two are as likely."""
    rules: dict[str, str] = {}
    for alike in changes:
        fits = [change for change in alike if change]
        most = max((fit.likeness() for fit in fits), default=None)
        best = [fit for fit in fits if fit.likeness() == most]
        if len(best) != 1:
            return None
        old, new = best[0].rule()
        if rules.setdefault(old, new) != new:
            return None
    if len(rules) > MOST_RULES:
        return None
    # Those for more words first, before a rule for fewer of them takes their tensors.
    return dict(sorted(rules.items(), key=lambda rule: -rule[0].count(".")))


def _suggestion(
    rules: Mapping[str, str], absent: Sequence[TensorSource], extra: Sequence[TensorSource]
) -> Suggestion | None:
    """Return the rules, if they do what they should and leave no part of a module behind."""
    wanted, names = [source.name for source in absent], _applied(rules, extra)
    left_absent = sorted(set(wanted) - set(names.values()))
    left_extra = [old for old, new in names.items() if new not in set(wanted)]
    if not names or (left_absent and left_extra):
        return None
    # `q_proj.x.weight` as `q_proj.weight` beside `q_proj.y.weight`: y is training, as of a LoRA.
    wrapped = {new.rpartition(".")[0] + "." for old, new in names.items() if _is_inside(old, new)}
    if any(name.startswith(tuple(wrapped)) for name in left_extra):
        return None
    lines = [f"  - {{from: {json.dumps(o)}, to: {json.dumps(n)}}}" for o, n in rules.items()]
    return Suggestion("\n".join(["key_map:", *lines]), left_absent, left_extra)


def _is_inside(old: str, new: str) -> bool:
    module, _, leaf = new.rpartition(".")
    return old.startswith(f"{module}.") and old.endswith(f".{leaf}") and old != new


def _kinds(sources: Sequence[TensorSource]) -> Mapping[Words, Mapping[Words, object]]:
    """Return shapes by kind (names with `*` for numbers), then by the numbers."""
    kinds: dict[Words, dict[Words, object]] = {}
    for source in sources:
        words = source.name.split(".")
        kind = tuple("*" if word.isdigit() else word for word in words)
        kinds.setdefault(kind, {})[tuple(filter(str.isdigit, words))] = source.shape
    return kinds


def _change(old: Words, new: Words, common: int = 1) -> _Change | None:
    """Return the words left of two names without their common start and end; None if unfit.

    At least `common` words are the same in both.
    """
    before = _common_start(old, new)
    old, new = old[len(before) :], new[len(before) :]
    after = _common_start(old[::-1], new[::-1])[::-1]
    change = _Change(before, old[: len(old) - len(after)], new[: len(new) - len(after)], after)
    numbers = "*" in change.old or "*" in change.new
    return None if numbers or change.likeness()[0] < common else change


def _common_start(old: Words, new: Words) -> Words:
    return tuple(
        a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
    )


def _applied(rules: Mapping[str, str], sources: Sequence[TensorSource]) -> Mapping[str, str]:
    """Return the names after all rules, by the names before; none if two become one."""
    before = {source.name: source.name for source in sources}
    for old, new in rules.items():
        rule = parse_rule({"from": old, "to": new})
        for key, instance in find(rule, sorted(before)).items():
            for name in instance.get(rule.layouts[0], {}).values():
                renamed = name_of(new, key, rule)
                if renamed in before:
                    return {}
                before[renamed] = before.pop(name)
    return {old: new for new, old in before.items()}
