"""Sources without what only people read: docstrings, comments, annotations of plain functions and
of variables, imports for types.

Works on positions of the syntax tree, so that the bytes do not depend on the Python that does it,
and lines stay where they were, so that tracebacks still name those of the sources. Of the whole
worker, packed: without strings and comments 36 % less, without annotations 3 % more. Narrower
indentation and fewer blanks change nothing that bz2 would not find.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

COMMENT = r"^\s*#.*|  #[^\"']*$"
"""A string that held the sign would end in a quote further on."""


BLIND = frozenset(
    {"abstractmethod", "cache", "classmethod", "contextlib.contextmanager", "contextmanager"}
    | {"functools.cache", "property", "staticmethod"}
)
"""Decorators to which annotations are nothing."""

FIELD = b"0"
"""In place of the type of a field: a dataclass asks whether there is one, and what it is not."""

NOT_FIELDS = ("ClassVar", "InitVar", "KW_ONLY")


NAMES_OF_TYPES = r"^(from (?:collections\.abc|pathlib|types|typing) import )(\w+(?:, \w+)*)$"


def without_words(text: str, tree: ast.Module | None = None) -> str:
    """The same bytes from every Python that the project supports. `tree`: that of the text."""
    lines = [line.encode() for line in text.split("\n")]
    tree = tree or ast.parse(text)
    for suite in _suites(tree):
        _empty_strings(suite, lines)
        _drop_lists_of_names(suite, lines)
    for suite in _suites(tree):
        _drop_annotations(suite, lines)
    _drop_types(tree, lines)
    within_text: set[int] = set()
    # Most sources hold no such text by now, and a walk over all of them takes half a second.
    if any(mark in b"\n".join(lines) for mark in (b'"""', b"'''", b"\\\n")):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
                within_text.update(range(node.lineno - 1, node.end_lineno or 0))
    bare = "\n".join(
        line if number in within_text else re.sub(COMMENT, "", line)
        for number, line in enumerate(line.decode() for line in lines)
    )
    return re.sub(NAMES_OF_TYPES, lambda found: _used(found, bare), bare, flags=re.MULTILINE)


def _drop_lists_of_names(suite: list[ast.stmt], lines: list[bytes]) -> None:
    """`__all__`, which only an import of everything reads."""
    for node in suite:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            last = node.end_lineno or node.lineno
            lines[node.lineno - 1 : last] = [b""] * (last - node.lineno + 1)


def _used(found: re.Match[str], text: str) -> str:
    """An import of names of types without those that nothing mentions any more."""
    names = [n for n in found[2].split(", ") if len(re.findall(rf"\b{n}\b", text)) > 1]
    return found[1] + ", ".join(names) if names else ""


def _drop_annotations(suite: list[ast.stmt], lines: list[bytes]) -> None:
    """Not of functions whose decorator may read them, as that of the methods does."""
    spans: list[tuple[int, int, ast.expr]] = []
    for node in suite:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not {ast.unparse(each) for each in node.decorator_list} <= BLIND:
            continue
        given = node.args
        names = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        for name in names:
            if name is not None and name.annotation is not None:
                start = name.col_offset + len(name.arg.encode())
                spans.append((name.lineno, start, name.annotation))
        if node.returns is not None:
            arrow = lines[node.returns.lineno - 1].rfind(b"->", 0, node.returns.col_offset)
            spans.append((node.returns.lineno, arrow, node.returns))
    for line, start, annotation in sorted(spans, key=lambda span: span[:2], reverse=True):
        if start >= 0 and line == annotation.end_lineno:
            whole = lines[line - 1]
            lines[line - 1] = whole[:start].rstrip() + whole[annotation.end_col_offset :]


def _drop_types(node: ast.AST, lines: list[bytes]) -> None:
    """Imports for types alone, and annotations of variables; those of fields become FIELD."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING":
            if not each.orelse and isinstance(node, ast.Module):
                last = each.end_lineno or each.lineno
                lines[each.lineno - 1 : last] = [b""] * (last - each.lineno + 1)
        elif isinstance(each, ast.AnnAssign):
            _drop_type(each, isinstance(node, ast.ClassDef), lines)
        elif isinstance(each, ast.stmt | ast.ExceptHandler):
            _drop_types(each, lines)


def _drop_type(node: ast.AnnAssign, field: bool, lines: list[bytes]) -> None:
    target, kind = node.target, node.annotation
    if not target.lineno == target.end_lineno == kind.lineno == kind.end_lineno:
        return
    whole = lines[target.lineno - 1]
    if field and not any(word in ast.unparse(kind) for word in NOT_FIELDS):
        lines[target.lineno - 1] = whole[: kind.col_offset] + FIELD + whole[kind.end_col_offset :]
    elif not field and node.value is not None:
        lines[target.lineno - 1] = whole[: target.end_col_offset] + whole[kind.end_col_offset :]


def _suites(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every run of statements of one indentation."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        suite: list[ast.AST] = getattr(node, name, [])
        statements = [each for each in suite if isinstance(each, ast.stmt)]
        if statements:
            yield statements
        for each in suite:
            yield from _suites(each)


def _empty_strings(suite: list[ast.stmt], lines: list[bytes]) -> None:
    """Docstrings, and the strings that stand below constants and fields."""
    strings = [
        node
        for node in suite
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    # A suite that is nothing but a string needs it.
    for node in strings if len(strings) < len(suite) else []:
        start, end = node.lineno - 1, node.end_lineno or node.lineno
        before = lines[start][: node.col_offset]
        after = lines[end - 1][node.end_col_offset :]
        if not (before + after).strip():
            lines[start:end] = [b""] * (end - start)
