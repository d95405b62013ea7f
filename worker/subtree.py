"""Which tensors are merged at all: patterns of names; the rest is copied from the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from .errors import nearest, printable


def matches(pattern: str, name: str) -> bool:
    """With `*`, `?` or `[`, a pattern is of whole names; else words that follow each other there.

    `mlp.gate` is in `model.layers.3.mlp.gate.weight`, not in `…mlp.gate_proj.weight`.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return f".{pattern.strip('.')}." in f".{name}."


def chosen(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a tensor is merged: what is excluded is not, whatever includes it."""
    wanted = not include or any(matches(pattern, name) for pattern in include)
    return wanted and not any(matches(pattern, name) for pattern in exclude)


def idle(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """What is wrong with patterns that no name matches."""
    words = {word for name in names for word in name.split(".") if not word.isdigit()}
    return [
        f"no tensor matches '{printable(pattern)}'{nearest(pattern.strip('.*'), words)}"
        for pattern in patterns
        if not any(matches(pattern, name) for name in names)
    ]
