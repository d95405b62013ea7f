"""Files that are YAML like a recipe and are something else: searches and sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UsageError
from ..messages import printable
from .yaml_document import Document


class _Kind(NamedTuple):
    """A kind of file: what it is, the command that takes it, and its keys, any of the last ones."""

    name: str
    command: str
    key: str
    any_of: tuple[str, ...]


_KINDS = (
    _Kind("a search of mergekit-evolve", "search", "genome", ("genome",)),
    _Kind(
        "a search over values of a recipe", "search", "recipe", ("space", "evaluate", "perplexity")
    ),
    _Kind("a sweep over values of a recipe", "sweep", "recipe", ("grid", "list")),
)


def is_evolve_file(value: object) -> bool:
    """Return whether a YAML value is a file of mergekit-evolve."""
    return _kind_of(value) == _KINDS[0]


def is_other_file(value: object) -> bool:
    """Return whether a YAML value is a search or a sweep."""
    return _kind_of(value) is not None


def refuse_other_files(document: Document) -> None:
    """Raise UsageError with the command to use if a document is a search or a sweep."""
    kind = _kind_of(document.value)
    if kind is not None:
        file = printable(document.where)
        raise UsageError(
            f"{file}: this is {kind.name}, not a recipe\n"
            f"  start it: merge-launch {kind.command} {file} local (or slurm, pbs, beaker)"
        )


def _kind_of(value: object) -> _Kind | None:
    if not isinstance(value, Mapping) or "merge_method" in value:
        return None
    kinds = (kind for kind in _KINDS if kind.key in value and any(k in value for k in kind.any_of))
    return next(kinds, None)
