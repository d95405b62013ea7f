"""Wording of messages: counts, lists of names, suggestions, and text safe for a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from itertools import islice
from typing import TextIO

HERE = "MERGE_LAUNCH_HERE"
"""The variable of a merge in this terminal: the folder that its command was typed in."""

LONGEST_WORD, MOST_WORDS = 100, 5000

_SINGULAR = {"are": "is", "have": "has", "differ": "differs", "match": "matches", "take": "takes"}
"""Singular of the verbs in messages, by their plural."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'dare_ties'?)`, or "" if no allowed word is similar."""
    # Longer texts are no words, and take difflib seconds.
    if len(word) > LONGEST_WORD:
        return ""
    some = (name for name in allowed if len(name) <= LONGEST_WORD)
    plain = {name.replace("-", "_").lower(): name for name in islice(some, MOST_WORDS)}
    given = word.replace("-", "_").lower()
    matches = get_close_matches(given, plain, n=3, cutoff=0.6)
    near = next((match for match in matches if _is_near(given, match)), None)
    return f" (did you mean '{plain[near]}'?)" if near is not None else ""


def _is_near(word: str, name: str) -> bool:
    """Return whether a word may be a slip for a name, or a shorter form of it: bf16, dare."""
    letters = iter(name)
    return SequenceMatcher(None, word, name).ratio() >= 0.7 or all(c in letters for c in word)


def first_names(names: Iterable[str], limit: int = 3) -> str:
    """Return `a, b, c and 4 more`: enough to recognize the pattern."""
    listed = list(names)
    shown = ", ".join(printable(name) for name in listed[:limit])
    return shown + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def counted(count: int, words: str) -> str:
    """Return `3 tensors are missing` or `1 tensor is missing`; `words` is the plural form."""
    text = f" {words} "
    if count == 1:
        text = text.replace("s ", " ", 1)
        for plural, singular in _SINGULAR.items():
            text = text.replace(f" {plural} ", f" {singular} ")
    return f"{count}{text}"[:-1]


def printable(text: str) -> str:
    """Escape control characters, which a terminal would obey, in text from files or the user."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def relative_paths(text: str, folder: str) -> str:
    """Return a message with the paths below a folder relative to it, as they were typed there.

    Values of options, such as `--weka BUCKET:/folder`, stay.
    """
    begin = folder.rstrip("/") + "/"
    return re.sub(rf"(?<![\w./~:=-]){re.escape(begin)}(?=[\w.])", "", text) if folder else text


def print_line(text: str, stream: TextIO) -> None:
    """Print text that may hold names from files, with control characters escaped."""
    text = relative_paths(text, os.environ.get(HERE, ""))
    print("\n".join(printable(line) for line in text.split("\n")), file=stream)
