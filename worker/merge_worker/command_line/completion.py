"""Completion in shells, by the package argcomplete: methods, models, files and choices.

A completer is chosen by the metavar of an option or word, which both programs spell alike.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UsageError
from ..system.packages import missing_package

SHELLS = ("bash", "zsh", "fish")
FLAG = "--print-completion"
Completer = Callable[[str], Sequence[str]]


def is_asked() -> bool:
    """Return whether a shell asks for completions, by the variables of argcomplete."""
    return "_ARGCOMPLETE" in os.environ


def words_so_far() -> list[str]:
    """Return the words before the cursor, without the program; the last one may be unfinished."""
    try:
        import argcomplete
    except ImportError:  # the command must not run in place of its completion
        raise SystemExit(1) from None

    line = os.environ.get("COMP_LINE", "")
    point = int(os.environ.get("COMP_POINT", len(line)))
    _, prefix, _, words, _ = argcomplete.split_line(line, point)
    return [*words[1:], prefix]


def complete(
    parser: argparse.ArgumentParser, skip: int, completers: Mapping[str, Completer]
) -> None:
    """Print the completions of the line, and exit. The parser knows nothing of `skip` words."""
    import argcomplete

    os.environ["_ARGCOMPLETE"] = str(int(os.environ["_ARGCOMPLETE"]) + skip)
    known = {**_completers(), **completers}
    for action in parser._actions:
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest
        if re.fullmatch(r"[\w-]+(\|[\w-]+)+", metavar):
            known.setdefault(metavar, _choices(metavar.split("|")))
        if action.choices is None and metavar in known:
            action.completer = _as_argcomplete(known[metavar])  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options=False)


def first_word(names: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of the first word of a command line: a command or an option of pages."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=names)
    parser.add_argument("--version", action="store_true")
    parser.add_argument(FLAG, choices=SHELLS)
    return parser


def _as_argcomplete(completer: Completer) -> Callable[..., Sequence[str]]:
    return lambda prefix, **_: completer(prefix)


def script(program: str, shell: str) -> str:
    """Return the lines that teach a shell the completion of a program. UsageError."""
    if shell not in SHELLS:
        raise UsageError(f"{FLAG}: expected {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    try:
        import argcomplete
    except ImportError:
        raise missing_package(FLAG, "argcomplete") from None
    return str(argcomplete.shellcode([program], shell=shell))


def _completers() -> dict[str, Completer]:
    return {
        "MODEL": _models,
        "BASE": _models,
        "MOE": _models,
        "CHECKPOINT": _models,
        "SOURCE": _models,
        "ADAPTER": _folders,
        "OUT": _folders,
        "DIR": _folders,
        **dict.fromkeys(("RECIPE.yml", "SWEEP.yml", "SEARCH.yml"), _recipes),
    }


def _folders(prefix: str) -> list[str]:
    return [path for path in _paths(prefix) if path.endswith("/")]


def _choices(words: Sequence[str]) -> Completer:
    return lambda prefix: [word for word in words if word.startswith(prefix)]


def _recipes(prefix: str) -> list[str]:
    return [path for path in _paths(prefix) if path.endswith(("/", ".yml", ".yaml", ".json"))]


def _models(prefix: str) -> list[str]:
    """Return folders, files that models or recipes are, and models in the cache of the Hub."""
    endings = ("/", ".safetensors", ".bin", ".pt", ".yml", ".yaml")
    found = [path for path in _paths(prefix) if path.endswith(endings)]
    return [*found, *(name for name in _cached() if name.startswith(prefix))]


def _paths(prefix: str) -> Iterator[str]:
    """Yield the paths that begin with a text, folders with a slash; hidden ones if it asks."""
    head, tail = os.path.split(prefix)
    place = Path(head or ".").expanduser()
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(tail) and (tail or not entry.name.startswith(".")):
            yield str(Path(head) / entry.name) + ("/" if entry.is_dir() else "")


def _cached() -> list[str]:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    place = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    names = (entry.name for entry in place.glob("models--*--*"))
    return sorted(name.removeprefix("models--").replace("--", "/", 1) for name in names)
