"""Which files of the worker a job needs: its methods, and what a merge imports, at once or late."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

from worker.commands import LATE

from .squeeze import tree_of

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
    roots += [f"{LATE[name][0]}.py" for name in commands]
    waiting = [name for name in roots if name in sources]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            tree = tree_of(sources[name].read_text(encoding="utf-8"))
            found_here = _imported(tree.body, name, features)
            waiting += [each for each in found_here if each in sources]
    return {name: path for name, path in sources.items() if name in found}


def _imported(body: list[ast.stmt], name: str, features: Collection[str]) -> Iterator[str]:
    """File names that the imports of a file may mean, its own packages among them."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield from _meant(node, name)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _imported(node.orelse, name, features)
        elif (feature := _feature(node)) is None or feature in features:
            for field in ("body", "orelse", "finalbody", "handlers"):
                for inner in getattr(node, field, []):
                    if isinstance(inner, ast.stmt):
                        yield from _imported([inner], name, features)
                    elif isinstance(inner, ast.ExceptHandler):
                        yield from _imported(inner.body, name, features)


def _feature(node: ast.stmt) -> str | None:
    """That of `with needed(feature)`."""
    call = node.items[0].context_expr if isinstance(node, ast.With) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "needed":
        return str(ast.literal_eval(call.args[0]))
    return None


def _meant(node: ast.ImportFrom, name: str) -> Iterator[str]:
    dotted = (node.module or "").split(".") if node.module else []
    if node.level:
        above = name.split("/")[: -node.level]
    elif dotted[0] == "worker":
        above, dotted = [], dotted[1:]
    else:
        return
    parts = [*above, *dotted]
    for inner in ([], *([alias.name] for alias in node.names)):
        for count in range(len(parts) + len(inner) + 1):
            yield "/".join([*(*parts, *inner)[:count], "__init__.py"])
        yield "/".join([*parts, *inner]) + ".py"
