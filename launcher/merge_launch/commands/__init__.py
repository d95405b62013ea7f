"""Table of the commands of merge-launch.

A command is a module here with a function `options(parser, place)`, which adds its words and
options to a parser and returns the function that runs it, and a row below. `place` is the word that
says where to run, or what to do, for the commands that have one: a backend, or `results`.

Modules are imported only when their command is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import NamedTuple

from merge_worker.command_line.pages import page_of_commands
from merge_worker.command_line.parser import Parser, finish
from merge_worker.commands import COMMANDS as WORKER_COMMANDS
from merge_worker.commands import GROUPS as WORKER_GROUPS
from merge_worker.commands import MERGES

from .. import backends
from .decorators import Run

MANY, JOBS, SITE = "many merges, and their scores", "jobs", "site"
GROUPS = (MERGES, MANY, JOBS, *WORKER_GROUPS[1:], SITE)
"""Titles of the groups of commands, in the order of the help."""
OTHERWISE = {"merge", "check", "search", "mergekit"}
"""Commands of merge-worker that merge-launch has in another form."""
REACHED = {each.name: each for each in WORKER_COMMANDS if each.name not in OTHERWISE}
"""Commands of merge-worker that merge-launch runs as they are."""


class Command(NamedTuple):
    """A command: its name, its module here, its line of help, its group and an example.

    `prefix` stands before the name of `options` in a module with several commands. `place` is the
    metavar of the word that says where to run, which is the first word, or the `place_at`-th;
    `default` is taken where it is left out.
    """

    name: str
    module: str
    help: str
    group: str
    example: str
    prefix: str = ""
    place: str = ""
    place_at: int = 0
    default: str = ""

    def places(self) -> Mapping[str, str]:
        """Return the words that `place` may be, with help; empty for other commands."""
        if not self.place:
            return {}
        if self.name == "render":
            return {name: backends.get(name).help for name in backends.names()}
        module = import_module(f".{self.module}", __name__)
        places: Mapping[str, str] = module.PLACES if self.name == "profile" else module.places()
        return places

    def place_in(self, words: Iterable[str]) -> str:
        """Return the place among the words behind the name, or the default.

        A word behind an option may be its value, and is taken only if there is no other.
        """
        given = list(words)
        known = self.places()
        found = [i for i, word in enumerate(given) if word in known]
        sure = [i for i in found if not given[i - 1].startswith("-") or i == 0]
        return given[(sure or found)[0]] if found else self.default

    def parser(self, place: str = "") -> tuple[Parser, Run]:
        """Return the parser of this command, and the function that runs it."""
        words = [self.name] if self.module in ("submit", "jobs") and not self.place else []
        text = f"{self.help[0].upper()}{self.help[1:]}."
        parser = Parser(f"merge-launch {self.name}", text, [f"merge-launch {self.example}"])
        function = getattr(import_module(f".{self.module}", __name__), f"{self.prefix}options")
        if self.place and not self.place_at:
            self._add_place(parser, place)
        run: Run = function(parser, place or "".join(words))
        if self.place and self.place_at:
            self._add_place(parser, place)
        return finish(parser), run

    def _add_place(self, parser: Parser, place: str) -> None:
        parser.add_argument(
            "place",
            metavar=place,
            choices=list(self.places()),
            nargs="?" if self.default else None,
            help=_lower(self.places()[place]),
        )

    def page(self) -> str:
        """Return the help of a command whose place is not given."""
        words = ["SWEEP.yml", "SEARCH.yml", "OUT"]
        before = {"sweep": words[0], "search": words[1], "eval": words[2]}.get(self.name, "")
        program = " ".join(filter(None, ["merge-launch", self.name, before]))
        rows = [(name, _lower(text)) for name, text in self.places().items()]
        text = f"{self.help[0].upper()}{self.help[1:]}."
        return page_of_commands(program, text, {self.place: rows}, (), self.place)


def commands() -> tuple[Command, ...]:
    """Return all commands of merge-launch itself. A module of a backend is a command."""
    submits = (
        Command(
            name,
            "submit",
            _lower(backends.get(name).help),
            MERGES,
            EXAMPLES.get(name, f"{name} recipe.yml out"),
        )
        for name in sorted(backends.names(), key=lambda name: (name != "local", name))
    )
    return (*submits, *COMMANDS)


def _lower(text: str) -> str:
    return f"{text[0].lower()}{text[1:].rstrip('.')}"


EXAMPLES = {
    "local": "local out m1 m2 --weights 2,1",
    "pbs": "pbs recipe.yml out --ngpus 2 --mem 80g --walltime 12:00:00",
    "slurm": "slurm recipe.yml out --gpus 2 --mem 80G --time 12:00:00",
    "beaker": "beaker out/ m1 m2 m3 --weka models --cluster ai2/jupiter",
}
BACKEND = "BACKEND"
COMMANDS = (
    Command(
        "check",
        "check",
        "plan a merge from headers; report every fault; write nothing",
        MERGES,
        "check recipe.yml out",
    ),
    Command(
        "render",
        "submit",
        "print the job of a backend (= --dry-run)",
        MERGES,
        "render slurm recipe.yml out",
        prefix="render_",
        place=BACKEND,
    ),
    Command(
        "sweep",
        "sweep",
        "make many merges: one recipe, many values",
        MANY,
        "sweep sweep.yml slurm --gpus 1",
        place=BACKEND,
        place_at=1,
    ),
    Command(
        "search",
        "search",
        "search for the values of a recipe that give the best score",
        MANY,
        "search search.yml slurm --workers 4",
        place=BACKEND,
        place_at=1,
    ),
    Command(
        "eval",
        "evaluate",
        "run benchmarks on a finished merge, and on its inputs, by lm-evaluation-harness",
        MANY,
        "eval out slurm --tasks arc_easy,hellaswag --parents",
        place=BACKEND,
        place_at=1,
        default="here",
    ),
    Command("jobs", "jobs", "list the jobs submitted from here, newest first", JOBS, "jobs --all"),
    Command(
        "status",
        "jobs",
        "print the state of a job, or of each job of an array or a sweep",
        JOBS,
        "status 4711",
    ),
    Command(
        "logs",
        "jobs",
        "print the log of a job, its progress folded; with -f, end with the job's exit code",
        JOBS,
        "logs -f 4711",
    ),
    Command("why", "jobs", "explain why a job waits, or how it ended", JOBS, "why 4711"),
    Command(
        "cancel",
        "jobs",
        "cancel a job, or all jobs of an array or a sweep; finished work is kept",
        JOBS,
        "cancel 4711",
    ),
    Command("retry", "jobs", "submit a job once more: it resumes its output", JOBS, "retry 4711"),
    Command(
        "profile",
        "profile",
        "show and check profiles: settings for the jobs of a site",
        SITE,
        "profile show gadi",
        place="ACTION",
    ),
    Command(
        "payload",
        "payload",
        "print the digest of the worker that jobs carry; -o writes it as a file",
        SITE,
        "payload -o merge-worker.pyz",
    ),
)
