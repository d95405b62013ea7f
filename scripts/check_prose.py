"""Fail on docstrings that open without a subject and on messages that are not plain English.

The rules are in docs/contributing.md, "Prose".
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("launcher", "worker", "scripts", "tests")
OPENING = re.compile(r"(What|Those|That|Whose|Who|Of|It|The same|Such)\b")
WORDS = re.compile(
    r"\b(nobody|somebody|of ours|(is|are) told|mended|has not\b(?! been)|is no (?!longer|such)\w+)",
    re.I,
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def faults(path: Path) -> Iterator[str]:
    """Yield a line for every docstring and every message that breaks a rule."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    place = path.relative_to(ROOT)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            docstrings.add(id(node.body[0].value))  # type: ignore[attr-defined]
            if OPENING.match(text):
                line = getattr(node, "lineno", 1)
                yield f"{place}:{line}: docstring opens without its subject: {_first(text)}"
    if path.is_relative_to(ROOT / "tests") or path == Path(__file__).resolve():
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in docstrings:
            continue
        if match := WORDS.search(node.value):
            yield f"{place}:{node.lineno}: '{match[0]}' in {_first(node.value)!r}"


def _first(text: str) -> str:
    return text.strip().splitlines()[0][:80]


def main() -> int:
    """Print all faults; return 1 if there are any."""
    paths = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    lines = [line for path in paths for line in faults(path)]
    print("\n".join(lines) or "prose: no faults")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
