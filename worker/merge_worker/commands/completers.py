"""Completions of words that only the commands know: names of merge methods."""

from __future__ import annotations

from collections.abc import Mapping

from .. import methods
from ..command_line.completion import Completer


def method_names(prefix: str) -> list[str]:
    """Return the merge methods that begin with a text."""
    return [name for name in methods.names() if name.startswith(prefix)]


NAMES: Mapping[str, Completer] = {"METHOD": method_names}
"""Completers by metavar."""
