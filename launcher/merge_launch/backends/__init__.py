"""The backends: one module or package, and one template, for each place where a job can run.

This folder's listing is the registry: every module except those in SHARED is a backend.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .base import Backend

SHARED = ("arrays", "base")
"""Modules that all backends use."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of all backends, sorted, without importing any of them."""
    return tuple(sorted({module.name for module in iter_modules(__path__)}.difference(SHARED)))


def get(name: str) -> Backend[Any]:
    """Return the backend of that name. Raises TypeError if its module is malformed."""
    backend: Backend[Any] = import_module(f".{name}", __name__).BACKEND
    if backend.name != name:
        raise TypeError(f"{__name__}.{name}: its backend is called '{backend.name}'")
    return backend
