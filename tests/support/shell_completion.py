"""Completions as a shell asks for them, by the variables of argcomplete."""

import os
import subprocess
import sys
from pathlib import Path

from support.paths import SOURCES

CODE = "import sys; from {module}.cli import {entry}; {entry}()"
ENTRIES = {"merge-worker": ("merge_worker", "entry"), "merge-launch": ("merge_launch", "main")}


def complete(line: str, folder: Path) -> list[str]:
    """Return the completions of a command line whose cursor is at its end."""
    module, entry = ENTRIES[line.partition(" ")[0]]
    answers = folder / "completions"
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "fish",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "",
        "PYTHONPATH": os.pathsep.join([SOURCES, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    code = CODE.format(module=module, entry=entry)
    env = {**os.environ, **variables}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)
    return [each.partition("\t")[0].strip() for each in answers.read_text().splitlines()]
