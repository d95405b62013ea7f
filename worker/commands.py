"""Commands that merge nothing, by name: the module of each is imported only when it is asked for.

So a job's worker, which carries what `merge` imports, does without them. Such a module has
`options(parser)`, and `command(arguments)`, which answers with the text to print.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from .errors import UsageError

LATE = {
    "average": "average",
    "check": "check",
    "compare": "compare",
    "report": "finished",
    "extract-lora": "extract_lora",
    "mergekit": "mergekit",
    "merge-adapters": "merge_adapters",
    "methods": "describe",
    "verify": "verify",
}


def installed(name: str) -> ModuleType | None:
    """A module of the worker; None in that of a job, which does without some."""
    module = f"{__package__}.{name}"
    return import_module(module) if find_spec(module) else None


def load(name: str) -> ModuleType:
    """The module of a command. UsageError in a job's worker, which does not carry it."""
    module = installed(LATE[name])
    if module is None:
        raise UsageError(
            f"{name}: the worker of a job carries only what its merge needs; use an installed "
            f"merge-worker, or the file that 'merge-launch payload -o merge-worker.pyz' writes"
        )
    return module
