"""Commands beside `merge`: the module of each is imported only when it is asked for, since some
load torch.

Such a module has `options(parser)`, and `command(arguments)`, which answers with the text to print.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import NamedTuple


class Late(NamedTuple):
    """A module of the worker, and the line of `merge-worker --help` on its command."""

    module: str
    help: str


LATE = {
    "average": Late("merge", "weighted average of models, no recipe needed"),
    "check": Late("check", "plan a recipe from headers; nothing is written"),
    "compare": Late("compare", "how models differ, layer by layer, and what to merge them with"),
    "report": Late("report", "how far a finished merge is from each of its inputs, layer by layer"),
    "extract-lora": Late("extract_lora", "the difference of two models as an adapter"),
    "mergekit": Late("mergekit", "merge by mergekit itself, and look at what it wrote"),
    "merge-adapters": Late("merge_adapters", "several LoRA adapters into one"),
    "methods": Late("methods", "the merge methods and their parameters"),
    "verify": Late("verify", "re-read an output and compare it to its manifest"),
}


def load(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"{__package__}.{LATE[name].module}")
