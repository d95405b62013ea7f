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
    "average": ("average", "weighted average of models, no recipe needed"),
    "check": ("check", "plan a recipe from headers; nothing is written"),
    "compare": ("compare", "how models differ, layer by layer, and what to merge them with"),
    "report": ("finished", "how far a finished merge is from each of its inputs, layer by layer"),
    "extract-lora": ("extract_lora", "the difference of two models as an adapter"),
    "mergekit": ("mergekit", "merge by mergekit itself, and look at what it wrote"),
    "merge-adapters": ("merge_adapters", "several LoRA adapters into one"),
    "methods": ("describe", "the merge methods and their parameters"),
    "verify": ("verify", "re-read an output and compare it to its manifest"),
}


def load(name: str) -> ModuleType:
    """The module of a command. UsageError in a job's worker, which does not carry it."""
    module = f"{__package__}.{LATE[name][0]}"
    if find_spec(module) is None:
        raise UsageError(
            f"{name}: the worker of a job carries only what its merge needs; use an installed "
            f"merge-worker, or the file that 'merge-launch payload -o merge-worker.pyz' writes"
        )
    return import_module(module)
