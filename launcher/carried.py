"""Which files of the worker a job needs: its methods, and what a merge imports, at once or late."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from worker.commands import LATE

from . import bare

ENTRY = "__main__.py"
ALWAYS = ("linear",)
"""Methods that the engine takes whatever the recipe says: this one only changes a dtype."""


def everything(package: Path) -> dict[str, Path]:
    """The sources of a package by their names within it."""
    return {
        path.relative_to(package).as_posix(): path
        for path in sorted(package.rglob("*.py"))
        if not {"__pycache__", "tests"} & set(path.relative_to(package).parts)
    }


def needed(
    package: Path,
    methods: Collection[str],
    commands: Collection[str] = (),
    features: Collection[str] = (),
) -> dict[str, Path]:
    """Those that `merge`, and these commands, can come to run for recipes of these methods.

    Imports below `with needed(feature)` count where the feature is one of these.

    Other commands, which the worker imports by name, and methods that it lists are not imports, so
    they stay behind; a module that only types mention does too.
    """
    sources = everything(package)
    roots = [ENTRY, *(f"methods/{name}.py" for name in {*ALWAYS, *methods})]
    roots += [f"{LATE[name]}.py" for name in commands]
    waiting = [name for name in roots if name in sources]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            one = bare.of(name, sources[name].read_text(encoding="utf-8"))
            waiting += [
                each
                for each, asked in one.imports
                if each in sources and all(feature in features for feature in asked)
            ]
    return {name: path for name, path in sources.items() if name in found}
