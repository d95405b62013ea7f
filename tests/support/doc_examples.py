"""Run the examples of README and docs/: named blocks are files, commands are executed.

A `bash` block has commands that succeed. A `console` block has commands behind `$` and their
output, which may be an error; a line `…` stands for any lines. A block of no kind that begins with
`$` has commands that succeed and print other numbers with each training.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from support.paths import SOURCES

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OTHER_EACH_TIME = (
    (re.compile(r"[\d.]+ (s\b|GiB/s)"), "#"),
    (re.compile(r"^(memory +).*", re.MULTILINE), r"\1#"),
    (re.compile(r"[\d.]+( KiB; no NaN)"), r"#\1"),
    (re.compile(r"[\d.]+ [KMGT]iB free"), "# free"),
    (re.compile(r"[-+]?\d+\.\d{4}( before| after| nats)"), r"#\1"),
)


class Block(NamedTuple):
    kind: str
    name: str
    text: str


class Outcome(NamedTuple):
    command: str
    expected: str | None
    code: int
    out: str
    err: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def programs(folder: Path) -> str:
    """Return PATH with merge-launch, merge-worker and the tests' python3 in front."""
    folder.mkdir()
    ours = f"PYTHONPATH={SOURCES} exec {sys.executable} -m"
    for name, text in {
        # Beaker jobs are printed, since there is no server.
        "merge-launch": f'[ "$1" != beaker ] || export MERGE_LAUNCH_DRY_RUN=1\n{ours} merge_launch',
        "merge-worker": f"{ours} merge_worker",
        # A link would lose the interpreter's environment.
        "python3": f"exec {sys.executable}",
    }.items():
        (folder / name).write_text(f'#!/bin/bash\n{text} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def walk(page: Path, folder: Path, variables: Mapping[str, str]) -> Iterator[Outcome]:
    """Run every command of the page in order in the folder, and yield the results."""
    for kind, name, text in blocks(page):
        if name:
            (folder / name).write_text(text, encoding="utf-8")
        if kind == "bash":
            for command in text.replace("\\\n", "").splitlines():
                yield _run(command, None, folder, variables)
        elif kind == "console" or (not kind and text.startswith("$ ")):
            for session in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, expected = session.partition("\n")
                yield _run(command, expected if kind else None, folder, variables)


def _run(command: str, expected: str | None, folder: Path, variables: Mapping[str, str]) -> Outcome:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PWD": str(folder), **variables},
        timeout=300,
    )
    return Outcome(command, expected, done.returncode, done.stdout, done.stderr)


def difference(result: Outcome, folder: Path, shown_as: str) -> str | None:
    """Return how a command's result differs from the page, or None."""
    if result.expected is None:
        return f"{result.command}\n{result.out}{result.err}" if result.code else None
    printed = _masked((result.err + result.out).replace(str(folder), shown_as))
    lines = [re.escape(line) for line in _masked(result.expected).splitlines()]
    pattern = "\n".join(lines).replace("…\n", "(?:.*\n)*?").replace("\n…", "(?:\n.*)*")
    if re.fullmatch(pattern, printed.rstrip("\n")):
        return None
    return f"{result.command}\nprinted\n{printed}\nthe page says\n{result.expected}"


def _masked(text: str) -> str:
    for pattern, to in _OTHER_EACH_TIME:
        text = pattern.sub(to, text)
    return text
