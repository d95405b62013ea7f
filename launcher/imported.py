"""Which files of a package a file of it may import, at once or late, and what that depends on."""

from __future__ import annotations

import ast
from collections.abc import Iterator

Import = tuple[str, tuple[str, ...]]
"""A file name, and the features below whose `with needed(feature)` its import stands."""


def imports(body: list[ast.stmt], name: str, asked: tuple[str, ...] = ()) -> Iterator[Import]:
    """Those of a file, its own packages among them; `name` is that of the file in its package."""
    for node in body:
        if isinstance(node, ast.ImportFrom):
            yield from ((each, asked) for each in _meant(node, name))
        elif isinstance(node, ast.If) and _for_types(node.test):
            yield from imports(node.orelse, name, asked)
        else:
            feature = _feature(node)
            within = asked if feature is None else (*asked, feature)
            for field in ("body", "orelse", "finalbody", "handlers"):
                for inner in getattr(node, field, []):
                    if isinstance(inner, ast.stmt):
                        yield from imports([inner], name, within)
                    elif isinstance(inner, ast.ExceptHandler):
                        yield from imports(inner.body, name, within)


def _for_types(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))


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
