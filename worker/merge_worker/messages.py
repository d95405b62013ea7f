"""TODO"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TextIO

ONE = {"are": "is", "have": "has", "differ": "differs", "match": "matches", "take": "takes"}
"""Verbs of one thing, by those of several."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'dare_ties'?)`, or nothing when no allowed word is near."""
    plain = {name.replace("-", "_").lower(): name for name in allowed}
    found = get_close_matches(word.replace("-", "_").lower(), plain, n=1, cutoff=0.6)
    return f" (did you mean '{plain[found[0]]}'?)" if found else ""


def first_names(names: Iterable[str], limit: int = 3) -> str:
    """`a, b, c and 4 more`: enough to recognise the pattern, never a flood."""
    listed = list(names)
    shown = ", ".join(printable(name) for name in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def counted(count: int, words: str) -> str:
    """`3 tensors are missing`, `1 tensor is missing`: `words` are those for several."""
    text = f" {words} "
    if count == 1:
        text = text.replace("s ", " ", 1)
        for several, one in ONE.items():
            text = text.replace(f" {several} ", f" {one} ")
    return f"{count}{text}"[:-1]


def printable(text: str) -> str:
    """Text from a file or the user without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_line(text: str, stream: TextIO) -> None:
    """Print what may hold names from files, without what a terminal would obey."""
    print("\n".join(printable(line) for line in text.split("\n")), file=stream)
