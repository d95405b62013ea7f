"""Table of the commands of merge-worker.

A command is a module with two functions, and a row below:

    options(parser)       adds its arguments to a parser
    command(arguments)    runs it and returns the text to print; raises WorkerError

Modules are imported only when their command is asked for, since some load torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from ..command_line.parser import Parser, finish
from ..system.packages import explained

MERGES, LOOKS = "merge", "look at models"
ADAPTERS, MIXTURES = "adapters", "mixtures of experts"
GROUPS = (MERGES, LOOKS, ADAPTERS, MIXTURES)
"""Titles of the groups of commands, in the order of the help."""

RESUMED = ("merge", "average", "convert", "search", "mergekit", "importance", "train-routers")
"""Commands that resume if they are typed again after a signal; the others begin anew."""


class Command(NamedTuple):
    """A command: its name, its module here, its line in `merge-worker --help`, and an example.

    `prefix` stands before the names of both functions in a module with a second command. The words
    of `example` follow the name of the program.
    """

    name: str
    module: str
    help: str
    group: str
    example: str
    prefix: str = ""

    def parser(self, program: str) -> Parser:
        """Return the parser of this command of `program`."""
        module = import_module(f"{__package__}.{self.module}")
        parser = Parser(f"{program} {self.name}", self.description, [f"{program} {self.example}"])
        getattr(module, f"{self.prefix}options")(parser)
        return finish(parser)

    @property
    def description(self) -> str:
        """The line of help as a sentence."""
        return f"{self.help[0].upper()}{self.help[1:]}."

    def run(self, arguments: argparse.Namespace) -> str:
        try:
            module = import_module(f"{__package__}.{self.module}")
            function: Callable[[argparse.Namespace], str] = getattr(module, f"{self.prefix}command")
            return function(arguments)
        except ModuleNotFoundError as error:
            raise explained(error, self.name) from error


COMMANDS = (
    Command("merge", "merge", "merge models by a recipe", MERGES, "merge recipe.yml out"),
    Command(
        "average",
        "merge",
        "merge models without a recipe: their weighted average, or another method",
        MERGES,
        "average out m1 m2 --weights 2,1",
        prefix="average_",
    ),
    Command(
        "convert",
        "merge",
        "one checkpoint in another form",
        MERGES,
        "convert runs/step2000 out --config base",
        prefix="convert_",
    ),
    Command(
        "check",
        "check",
        "plan a recipe from headers; nothing is written",
        MERGES,
        "check recipe.yml out",
    ),
    Command(
        "search",
        "search",
        "search for the values of a recipe that give the best score",
        MERGES,
        "search search.yml out",
    ),
    Command(
        "mergekit",
        "mergekit",
        "merge with mergekit itself, and check its result",
        MERGES,
        "mergekit recipe.yml out",
    ),
    Command(
        "verify",
        "verify",
        "read a finished merge again and compare it to its manifest",
        LOOKS,
        "verify out",
    ),
    Command(
        "methods",
        "methods",
        "the merge methods and their parameters",
        LOOKS,
        "methods ties",
    ),
    Command(
        "compare",
        "compare",
        "how models differ, layer by layer, and how to merge them",
        LOOKS,
        "compare m1 m2 --base-model base --plot models.html",
    ),
    Command(
        "report",
        "report",
        "how far a finished merge is from each input, layer by layer",
        LOOKS,
        "report out --plot out.html",
    ),
    Command(
        "try",
        "try_models",
        "load models in transformers, and let them say something",
        LOOKS,
        "try out m1 --prompt 'The capital of France is'",
    ),
    Command(
        "perplexity",
        "perplexity",
        "how well models predict a text, window by window",
        LOOKS,
        "perplexity m1 m2 out --data texts.jsonl",
    ),
    Command(
        "importance",
        "importance",
        "which weights of a model matter for some texts",
        LOOKS,
        "importance m1 m1.fisher.safetensors --data texts.jsonl",
    ),
    Command(
        "extract-lora",
        "extract_lora",
        "the difference of two models as an adapter",
        ADAPTERS,
        "extract-lora m1 adapter --base-model base --rank 32",
    ),
    Command(
        "merge-adapters",
        "merge_adapters",
        "several LoRA adapters into one",
        ADAPTERS,
        "merge-adapters out adapter1 adapter2 --weights 0.7,0.3",
    ),
    Command(
        "train-routers",
        "train_routers",
        "train only the routers of a mixture of experts",
        MIXTURES,
        "train-routers moe --data texts.jsonl --steps 200",
    ),
    Command(
        "routing",
        "routing",
        "which experts of a mixture the tokens of texts reach",
        MIXTURES,
        "routing moe --texts code=code.txt --plot routing.html",
    ),
)
