"""Table of the commands of merge-worker.

A command is a module with two functions, and a row below:

    options(parser)       adds its arguments to an argparse parser
    command(arguments)    runs it and returns the text to print; raises WorkerError

Modules are imported only when their command is asked for, since some load torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from ..system.packages import explained


class Command(NamedTuple):
    """A command: its name, its module here, and its line in `merge-worker --help`.

    `prefix` stands before the names of both functions in a module with a second command.
    """

    name: str
    module: str
    help: str
    prefix: str = ""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        getattr(import_module(f"{__package__}.{self.module}"), f"{self.prefix}options")(parser)

    def run(self, arguments: argparse.Namespace) -> str:
        try:
            module = import_module(f"{__package__}.{self.module}")
            function: Callable[[argparse.Namespace], str] = getattr(module, f"{self.prefix}command")
            return function(arguments)
        except ModuleNotFoundError as error:
            raise explained(error, self.name) from error


COMMANDS = (
    Command("merge", "merge", "merge models by a recipe"),
    Command("average", "merge", "weighted average of models, no recipe needed", "average_"),
    Command("convert", "merge", "one checkpoint in another form", "convert_"),
    Command("check", "check", "plan a recipe from headers; nothing is written"),
    Command("compare", "compare", "how models differ, layer by layer, and how to merge them"),
    Command("report", "report", "how far a finished merge is from each input, layer by layer"),
    Command("importance", "importance", "which weights of a model matter for some texts"),
    Command("perplexity", "perplexity", "how well models predict a text, window by window"),
    Command("extract-lora", "extract_lora", "the difference of two models as an adapter"),
    Command("mergekit", "mergekit", "merge with mergekit itself, and check its result"),
    Command("merge-adapters", "merge_adapters", "several LoRA adapters into one"),
    Command("train-routers", "train_routers", "train only the routers of a mixture of experts"),
    Command("routing", "routing", "which experts of a mixture the tokens of texts reach"),
    Command("methods", "methods", "the merge methods and their parameters"),
    Command("search", "search", "values of a recipe that give the best score"),
    Command("try", "try_models", "load models in transformers, and let them say something"),
    Command("verify", "verify", "re-read an output and compare it to its manifest"),
)
