"""Regular expressions of adapters, matched in a time that grows with pattern and name alone.

Python's own engine tries every way to match, one after the other: a pattern of thirty characters
may take it years, and nothing can stop it. Here all ways are followed side by side. What this does
not allow (references to groups, looking ahead or behind, flags) is refused.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

if sys.version_info >= (3, 11):
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_parse as parser

MOST_STATES, MOST_STEPS = 5000, 200
"""Of one pattern: repeats with counts multiply states; steps are kept, to be taken again."""

MOST_WORK = 5_000_000
"""States that are visited for all names and patterns of a table: a few seconds."""

_SINGLE = ("LITERAL", "NOT_LITERAL", "ANY", "IN")

Test = Callable[[str], bool]


class TooComplex(ValueError):
    """A pattern needs more than following all ways side by side, or has too many of them."""


class PatternTable:
    """The patterns of an adapter's modules. Raises TooComplex, re.error, or what else is no table.

    As PEFT has it, a pattern matches the whole name of a module, or all behind a dot of it.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: list[tuple[str, _Plain | _Pattern]] = []
        self._work = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that a later Python may read otherwise
            for text in patterns:
                self._worked(20 + 10 * len(text))
                parts = parser.parse(text)
                plain = all(str(code) in _SINGLE for code, _ in parts) and not _has_flags(parts)
                self._patterns.append((text, (_Plain if plain else _Pattern)(text)))

    def first(self, name: str) -> str | None:
        """Return the first pattern that matches a name."""
        for text, pattern in self._patterns:
            before = pattern.visited
            found = pattern.matches(name)
            self._worked(pattern.visited - before)
            if found:
                return text
        return None

    def _worked(self, work: int) -> None:
        self._work += work
        if self._work > MOST_WORK:
            raise TooComplex("the patterns take too long")


class _Plain:
    """A pattern of single characters, which the end of a name matches or not."""

    def __init__(self, text: str) -> None:
        self._pattern, self._width = re.compile(text), parser.parse(text).getwidth()[0]
        self.visited = 0

    def matches(self, name: str) -> bool:
        self.visited += 1
        start = len(name) - self._width
        begins = start == 0 or (start > 0 and name[start - 1] == ".")
        return begins and self._pattern.fullmatch(name, start) is not None


class _Pattern:
    """One regular expression, as states that a character leads from and to."""

    def __init__(self, text: str) -> None:
        parsed = parser.parse(rf"(?:.*\.)?(?:{text})")
        if _has_flags(parsed):
            raise TooComplex("it has flags")
        self.visited = 0
        self._tests: list[Test | str | None] = []
        """By state: of the character that leads on; a place in the name, or None, if none does."""
        self._next: list[list[int]] = []
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        start = self._state()
        self._end = self._add(parsed, start)
        self._start = self._closed({start}, ("AT_BEGINNING", "AT_BEGINNING_STRING"))

    def matches(self, name: str) -> bool:
        """Return whether a whole name matches."""
        states = self._start
        self.visited += len(name) // 4
        for character in name:
            step = (states, character)
            if step not in self._steps:
                if len(self._steps) >= MOST_STEPS:
                    self._steps.clear()
                self._steps[step] = self._after(states, character)
            states = self._steps[step]
            if not states:
                return False
        places = ("AT_END", "AT_END_STRING", *(() if name else ("AT_BEGINNING",)))
        return self._end in states or self._end in self._closed({*states}, places)

    def _after(self, states: frozenset[int], character: str) -> frozenset[int]:
        following: set[int] = set()
        for state in states:
            test = self._tests[state]
            if callable(test) and test(character):
                following.update(self._next[state])
        return self._closed(following, ())

    def _closed(self, states: set[int], places: tuple[str, ...]) -> frozenset[int]:
        """Return the states with those that they lead on to without a character."""
        todo = list(states)
        while todo:
            state = todo.pop()
            self.visited += 1
            if self._tests[state] is None or self._tests[state] in places:
                new = [n for n in self._next[state] if n not in states]
                states.update(new)
                todo += new
        return frozenset(states)

    def _state(self, test: Test | str | None = None) -> int:
        if len(self._tests) >= MOST_STATES:
            raise TooComplex("it has too many parts")
        self._tests.append(test)
        self._next.append([])
        return len(self._tests) - 1

    def _add(self, parts: Iterable[tuple[Any, Any]], start: int) -> int:
        """Add the states of a sequence behind `start`, and return the last one."""
        for code, argument in parts:
            start = self._add_one(str(code), argument, start)
        return start

    def _add_one(self, code: str, argument: Any, start: int) -> int:
        if code in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, inner = argument
            return self._add_repeat(least, most, inner, start)
        if code == "SUBPATTERN" and not (argument[1] or argument[2]):
            return self._add(argument[3], start)
        end = self._state()
        if code == "BRANCH":
            for branch in argument[1]:
                self._next[self._add(branch, start)].append(end)
            return end
        test = str(argument) if code == "AT" else _test(code, argument)
        if code == "AT" and "BOUNDARY" in str(argument):
            raise TooComplex("it has boundaries of words")
        here = self._state(test)
        self._next[start].append(here)
        self._next[here].append(end)
        return end

    def _add_repeat(self, least: int, most: Any, parts: Any, start: int) -> int:
        for _ in range(least):
            start = self._add(parts, start)
            self._state()  # without one, repeats of nothing would have no end
        end = self._state()
        if most is parser.MAXREPEAT:
            again = self._state()
            self._next[start].append(again)
            self._next[self._add(parts, again)].append(again)
            start = again
        else:
            for _ in range(most - least):
                self._next[start].append(end)
                start = self._add(parts, start)
                self._state()
        self._next[start].append(end)
        return end


def _has_flags(parts: Any) -> bool:
    return bool(parts.state.flags & ~re.UNICODE)


_CATEGORIES: dict[str, Test] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda character: character.isalnum() or character == "_",
}


_REFUSED = {
    "GROUPREF": "it refers to a group",
    "ASSERT": "it looks ahead or behind",
    "ASSERT_NOT": "it looks ahead or behind",
    "SUBPATTERN": "it has flags",
}


def _test(code: str, argument: Any) -> Test:
    """Return the test of one character."""
    if code == "LITERAL":
        return chr(argument).__eq__
    if code == "NOT_LITERAL":
        return chr(argument).__ne__
    if code == "ANY":
        return "\n".__ne__
    if code == "RANGE":
        first, last = map(chr, argument)
        return lambda character: first <= character <= last
    if code == "CATEGORY":
        positive = _CATEGORIES[str(argument).replace("NOT_", "")]
        negated = "NOT_" in str(argument)
        return lambda character: positive(character) is not negated
    if code != "IN":
        raise TooComplex(_REFUSED.get(code, "it has groups of another kind"))
    tests = [_test(str(kind), value) for kind, value in argument if str(kind) != "NEGATE"]
    negated = str(argument[0][0]) == "NEGATE"
    return lambda character: any(test(character) for test in tests) is not negated
