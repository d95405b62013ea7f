"""The merge methods: this folder's listing. A file NAME.py holds the method NAME."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ..method import Method

__all__ = ["Method", "get", "names"]


@cache
def names() -> tuple[str, ...]:
    """All method names, sorted; also inside a zip, and without importing any of them."""
    found = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


@cache
def get(name: str) -> Method:
    """The method of that name. KeyError if there is none; TypeError if its file is malformed."""
    if name not in names():
        raise KeyError(name)
    method = getattr(import_module(f".{name}", __name__), name, None)
    if not isinstance(method, Method):
        raise TypeError(f"{__name__}.{name} does not define a merge method '{name}'")
    return method
