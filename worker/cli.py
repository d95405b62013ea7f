"""The commands of merge-worker. The only place that prints errors and decides exit codes."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from . import __version__, from_mergekit, misspelt, quick_torch
from .again import plan_again, said_again
from .commands import LATE, load
from .errors import InputError, Stopped, UsageError, WorkerError, input_errors, printable
from .hub import upload
from .one_pass import Clock
from .options import add_options, plan_options, run_options
from .output_files import MANIFEST
from .plan import Plan, make_plan
from .published import published
from .ranks import from_environment
from .recipe import parse
from .remote import is_hub_name
from .run import run_merges
from .stopping import Signals, asked, relax

BUG = "this is a bug in merge-worker; please report it with the lines above and the recipe"


def entry() -> NoReturn:
    """The command `merge-worker`: `main`, without the 0.4 s that torch takes to be torn down."""
    quick_torch.prepare()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code of interface.md."""
    signals = Signals()
    try:
        code = _main(argv, signals)
        signals.over = True
        return code
    except Stopped as error:  # a signal in the moment when something else was being answered
        _tell(f"merge-worker: {error}", sys.stderr)
        return error.exit_code
    finally:
        relax()


def _main(argv: Sequence[str] | None, signals: Signals) -> int:
    clock = Clock(time.monotonic())
    signals.take()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may not fit the locale
    try:
        words = _understood(list(sys.argv[1:] if argv is None else argv))
        arguments = _parser(words).parse_args(words)
        code: int = arguments.command(arguments, clock)
        signals.over = True
        sys.stdout.flush()
        return code
    except WorkerError as error:
        _tell(f"merge-worker: {error}", sys.stderr)
        return Stopped.exit_code if asked() else error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("merge-worker: interrupted; run the same command to continue", file=sys.stderr)
        return 75
    except SystemExit as error:  # argparse: 2 for a wrong command, 0 for --help
        return error.code if isinstance(error.code, int) else 2
    except BaseException:
        if asked():  # what is half imported makes another error of it
            _tell("merge-worker: stopped by a signal; run the same command again", sys.stderr)
            return Stopped.exit_code
        # Before Python 3.13 an uncaught error in a zip prints no source lines; this does.
        traceback.print_exc()
        print(f"merge-worker {__version__}: {BUG}", file=sys.stderr)
        return 1


def _tell(text: str, stream: TextIO) -> None:
    """Print what may hold names from files, without what a terminal would obey."""
    print("\n".join(printable(line) for line in text.split("\n")), file=stream)


def _understood(words: Sequence[str]) -> Sequence[str]:
    """Options of mergekit as those of the worker."""
    ours, notes = (
        from_mergekit.translated(words) if words[:1] in (["merge"], ["average"]) else (words, ())
    )
    for note in notes:
        _tell(f"note: {note}", sys.stderr)
    return [str(word) for word in from_mergekit.weights_apart(ours)]


def _merge(arguments: argparse.Namespace, clock: Clock) -> int:
    pairs = list(arguments.also)
    if arguments.recipe is not None:
        pairs.insert(0, (arguments.recipe, arguments.out))
    if not pairs or (arguments.recipe and not arguments.out):
        raise UsageError("merge: give RECIPE.yml and OUT, or several pairs, each behind -a")
    outs = [Path(out).resolve() for _, out in pairs]
    twice = next((out for out in outs if outs.count(out) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice}: two recipes write here; give each an OUT of its own")
    plans, faults = [], []
    for recipe, out in pairs:
        try:
            plans.append((recipe_plan(recipe, arguments, out), Path(out)))
        except WorkerError as error:
            faults.append(error)
    if faults:
        raise type(faults[0])("\n".join(map(str, faults)))
    return _run(plans, arguments, clock)


def recipe_plan(recipe: str, arguments: argparse.Namespace, out: str | None = None) -> Plan:
    """The plan of a recipe, or of the manifest of a merge that is to be done again."""
    path, options = Path(recipe), plan_options(arguments, out)
    text = read_recipe(path)
    if path.suffix == ".json" and (manifest := said_again(path, text)):
        return plan_again(path, manifest, options)
    return make_plan(parse(text, str(path)), options)


def _average(arguments: argparse.Namespace, clock: Clock) -> int:
    plan = load("average").plan_of(arguments)
    return _run([(plan, Path(arguments.out))], arguments, clock)


def _run(plans: Sequence[tuple[Plan, Path]], arguments: argparse.Namespace, clock: Clock) -> int:
    need_torch()
    for warning in dict.fromkeys(line for plan, _ in plans for line in plan.warnings):
        _tell(f"warning: {warning}", sys.stderr)
    if arguments.push and (len(plans) > 1 or not is_hub_name(arguments.push)):
        raise UsageError(f"--push {arguments.push}: give ORG/NAME, and one recipe")
    for line in run_merges(plans, run_options(arguments), from_environment(), clock):
        _tell(line, sys.stdout)
    if arguments.push and (plans[0][1] / MANIFEST).is_file():  # else other ranks still work
        _tell(upload(published(plans[0][1]), arguments.push), sys.stdout)
    return 0


def _late(arguments: argparse.Namespace, clock: Clock) -> int:
    with input_errors(arguments.late):
        text = load(arguments.late).command(arguments)
    _tell(text, sys.stdout)
    return 0


def need_torch() -> None:
    """UsageError if this interpreter has no torch, before anything is touched."""
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            f"torch is missing in {sys.executable}; install it (pip install torch), "
            f"or name an interpreter that has it (merge-launch: --python)"
        )


def read_recipe(path: Path) -> str:
    """The text of a recipe file. InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not text; a recipe is a YAML file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a recipe") from None


class _Parser(argparse.ArgumentParser):
    """Also of the commands. What is short for one option today may be short for two tomorrow."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**{**named, "allow_abbrev": False})
        self.commands: Mapping[str, argparse.ArgumentParser] = {}
        self.asked = ""  # which of them

    def error(self, message: str) -> NoReturn:
        """A line with the nearest right word, in place of the usage on fifteen."""
        raise UsageError(misspelt.explained(self, message))


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="merge-worker", description="Merge checkpoints of any architecture.")
    parser.add_argument("--version", action="version", version=f"merge-worker {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    merge = commands.add_parser("merge", help="merge what a recipe says")
    merge.add_argument("recipe", metavar="RECIPE.yml", nargs="?")
    merge.add_argument("out", metavar="OUT", nargs="?")
    merge.add_argument(
        "-a",
        dest="also",
        nargs=2,
        action="append",
        default=[],
        metavar=("RECIPE.yml", "OUT"),
        help="several pairs: one pass over the inputs, one output each",
    )
    merge.set_defaults(command=_merge)
    add_options(merge, "merge")
    for name, each in LATE.items():
        late = commands.add_parser(name, help=each.help)
        late.set_defaults(command=_average if name == "average" else _late, late=name)
        if argv[:1] == [name]:
            load(name).options(late)
    parser.commands, parser.asked = commands.choices, "".join(argv[:1])
    return parser
