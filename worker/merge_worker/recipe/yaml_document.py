"""YAML text → plain values, and the line of every entry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..messages import printable
from ..system.packages import missing_package

Place = tuple[str | int, ...]

COMMAND = "the command"
"""Place of a recipe that was made from a command line, whose parts are words and options."""

MAX_ENTRIES = 200_000
"""More entries than any recipe has; aliases that multiply (a 'YAML bomb') end here."""

MAX_CHARACTERS, MAX_DIGITS = 1 << 20, 1000
"""Of a recipe, since the parser takes seconds for a megabyte; of a number, or none can print it."""

MAX_DEPTH = 200
"""Nested brackets; the time of the parser grows with their square."""


@dataclass(frozen=True)
class Document:
    """One YAML document: its value, and where each path of it stands."""

    where: str
    value: Any
    lines: dict[Place, int] = field(repr=False)
    duplicates: tuple[Place, ...] = ()

    def place(self, path: Place) -> str:
        """Return `recipe.yml:12: models[1].parameters.weight`, by the nearest known line.

        In a recipe made from a command line, return the model or the option that stands there; in
        that of a member (`sweep.yml: name`), whose lines nobody has written, the path alone.
        """
        if self.where == COMMAND:
            return self._words(path)
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        text = ""
        for part in path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        number = "" if ": " in self.where else f":{line}"
        return f"{self.where}{number}: {printable(text)}".rstrip(": ")

    def _words(self, path: Place) -> str:
        """Return the words of a command that became a part of its recipe."""
        models = self.value["models"] if path[:1] == ("models",) and len(path) > 1 else None
        if isinstance(models, dict):
            return f"--{str(path[1]).replace('_', '-')}"
        if models is not None:
            entry = models[path[1]]
            model = printable(str(entry.get("model")))
            return f"{model}: {self._words(path[2:])}" if len(path) > 2 else model
        if path[:1] == ("parameters",) and len(path) > 1:
            return f"--param {printable(str(path[1]))}"
        options = {"merge_method": "--method", "base_model": "--base-model", "out_dtype": "--dtype"}
        return options.get(str(path[0]), self.where) if path else self.where


def import_yaml(where: str) -> Any:
    """Import pyyaml. Raises UsageError if it is missing, or another module has its name."""
    try:
        import yaml
    except ImportError:
        raise missing_package(where, "pyyaml") from None
    if not hasattr(yaml, "compose_all"):
        raise UsageError(f"{yaml.__file__} hides pyyaml; take its folder out of PYTHONPATH")
    return yaml


def read_documents(text: str, where: str, first_line: int = 1) -> list[Document]:
    """Return all documents of a text, which begins on a line of `where`.

    Raises UsageError with file and line if it is not YAML.
    """
    yaml = import_yaml(where)
    if len(text) > MAX_CHARACTERS:
        raise UsageError(f"{where}: {len(text)} characters; not a recipe")
    if _depth(text) > MAX_DEPTH:
        raise UsageError(f"{where}: nested too deeply; not a recipe")
    try:
        nodes = [node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None]
        documents = []
        for node in nodes:
            lines: dict[Place, int] = {}
            duplicates: list[Place] = []
            # Counted as they are met: keys that stand twice have one path, however often.
            for count, (path, line, twice) in enumerate(_walk(node, ())):
                lines.setdefault(path, first_line + line)
                if twice:
                    duplicates.append(path)
                if count > MAX_ENTRIES:
                    raise UsageError(f"{where}: more than {MAX_ENTRIES} entries; not a recipe")
            value = _construct(yaml.SafeLoader(""), node, where, first_line)
            documents.append(Document(where, value, lines, tuple(duplicates)))
        return documents
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + first_line}" if mark is not None else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "determine a constructor" in problem:
            tag = problem.rpartition("'tag:")[2].partition(":")[2].rstrip("'")
            problem = f"the tag '{tag}' is not read in recipes; write plain values"
        raise UsageError(f"{place}: not valid YAML: {printable(problem)}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply; not a recipe") from None


def _depth(text: str) -> int:
    """Return the most brackets open at once, counting those inside strings too."""
    most = now = 0
    for brackets in re.finditer(r"[{[]+|[}\]]+", text):
        now = max(0, now + len(brackets[0]) * (1 if brackets[0][0] in "{[" else -1))
        most = max(most, now)
    return most


def _construct(loader: Any, node: Any, where: str, first_line: int) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, LookupError, AttributeError) as error:
        # A tag or form promises what the text does not hold: `!!int x`, `2001-13-45`.
        line = node.start_mark.line + first_line
        raise UsageError(f"{where}:{line}: not valid YAML: {printable(str(error))}") from None


def _walk(node: Any, path: Place) -> Iterator[tuple[Place, int, bool]]:
    """Yield paths, lines from 0, and whether a key stands twice in its mapping, depth first."""
    yield path, node.start_mark.line, False
    _refuse_long_number(node)
    if node.id == "sequence":
        for number, item in enumerate(node.value):
            yield from _walk(item, (*path, number))
    elif node.id == "mapping":
        seen: set[str] = set()
        for key, item in node.value:
            _refuse_long_number(key)
            name = str(key.value)
            inner = (*path, name)
            yield inner, key.start_mark.line, name in seen and name != "<<"
            seen.add(name)
            yield from _walk(item, inner)


def _refuse_long_number(node: Any) -> None:
    import yaml

    if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
        fact = f"a number of {len(node.value)} digits"
        raise yaml.MarkedYAMLError(problem=fact, problem_mark=node.start_mark)
