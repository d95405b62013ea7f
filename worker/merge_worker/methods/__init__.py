"""The merge methods: a file NAME.py in this package defines the method NAME."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from ..method import Method


@cache
def names() -> tuple[str, ...]:
    """Return the names of all methods, sorted; works inside a zip, and imports none of them."""
    modules = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in modules if not name.startswith("_")))


@cache
def get(name: str) -> Method:
    """Return the method `name`.

    Raises KeyError if there is none, and TypeError if its file does not define it.
    """
    if name not in names():
        raise KeyError(name)
    method = getattr(import_module(f".{name}", __name__), name, None)
    if not isinstance(method, Method):
        raise TypeError(f"{__name__}.{name} does not define a merge method '{name}'")
    return method
