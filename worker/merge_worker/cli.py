"""The commands of merge-worker. The only place that prints errors and decides exit codes."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

from . import __version__
from .commands import LATE, load, mergekit_options
from .commands.merge import run_average, run_merge
from .commands.options import add_options
from .engine.options import Clock
from .errors import Stopped, UsageError, WorkerError, input_errors
from .messages import nearest, print_line
from .system import torch_startup
from .system.signals import Signals, cancel_exit, stop_requested

# MERGED What is said of a command line that argparse does not understand.


class Commands(Protocol):
    """A parser that knows its commands, and which of them was asked."""

    prog: str
    commands: Mapping[str, argparse.ArgumentParser]
    asked: str


def explain_usage_error(parser: Commands, message: str) -> str:
    """The message of argparse with the nearest right word, and where to read on."""
    text, prog = message, parser.prog
    if found := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose .*\)", message):
        choices = list(parser.commands) or re.findall(r"[\w-]+", message.rpartition("from ")[2])
        hint = nearest(found[2], choices)
        what = "no command" if found[1] == "COMMAND" else f"{found[1]}: no"
        text = f"{what} '{found[2]}'{hint}; one of {', '.join(choices)}"
    elif message.startswith("unrecognized arguments: "):
        asked = parser.commands[parser.asked]
        word, prog = message.partition(": ")[2].split()[0], asked.prog
        known = re.findall("--[a-z0-9-]+", asked.format_usage())
        text = f"no option {word}{nearest(word.partition('=')[0], known)}"
    where = prog.partition(" ")[2]
    return f"{where}{': ' if where else ''}{text}\n  see {prog} --help"


BUG = "this is a bug in merge-worker; please report it with the lines above and the recipe"


def entry() -> NoReturn:
    """The command `merge-worker`: `main`, without the 0.4 s that torch takes to be torn down."""
    torch_startup.prepare()
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
        print_line(f"merge-worker: {error}", sys.stderr)
        return error.exit_code
    finally:
        cancel_exit()


def _main(argv: Sequence[str] | None, signals: Signals) -> int:
    clock = Clock(time.monotonic())
    signals.take()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may not fit the locale
    try:
        words = translate_legacy_options(list(sys.argv[1:] if argv is None else argv))
        arguments = _parser(words).parse_args(words)
        code: int = arguments.command(arguments, clock)
        signals.over = True
        sys.stdout.flush()
        return code
    except WorkerError as error:
        print_line(f"merge-worker: {error}", sys.stderr)
        return Stopped.exit_code if stop_requested() else error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("merge-worker: interrupted; run the same command to continue", file=sys.stderr)
        return 75
    except SystemExit as error:  # argparse: 2 for a wrong command, 0 for --help
        return error.code if isinstance(error.code, int) else 2
    except BaseException:
        if stop_requested():  # what is half imported makes another error of it
            print_line("merge-worker: stopped by a signal; run the same command again", sys.stderr)
            return Stopped.exit_code
        # Before Python 3.13 an uncaught error in a zip prints no source lines; this does.
        traceback.print_exc()
        print(f"merge-worker {__version__}: {BUG}", file=sys.stderr)
        return 1


def translate_legacy_options(words: Sequence[str]) -> Sequence[str]:
    """Options of mergekit as those of the worker."""
    ours, notes = (
        mergekit_options.translated(words) if words[:1] in (["merge"], ["average"]) else (words, ())
    )
    for note in notes:
        print_line(f"note: {note}", sys.stderr)
    return [str(word) for word in mergekit_options.weights_apart(ours)]


def _late(arguments: argparse.Namespace, clock: Clock) -> int:
    with input_errors(arguments.late):
        text = load(arguments.late).command(arguments)
    print_line(text, sys.stdout)
    return 0


class _Parser(argparse.ArgumentParser):
    """Also of the commands. What is short for one option today may be short for two tomorrow."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**{**named, "allow_abbrev": False})
        self.commands: Mapping[str, argparse.ArgumentParser] = {}
        self.asked = ""  # which of them

    def error(self, message: str) -> NoReturn:
        """A line with the nearest right word, in place of the usage on fifteen."""
        raise UsageError(explain_usage_error(self, message))


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
    merge.set_defaults(command=run_merge)
    add_options(merge, "merge")
    for name, each in LATE.items():
        late = commands.add_parser(name, help=each.help)
        late.set_defaults(command=run_average if name == "average" else _late, late=name)
        if argv[:1] == [name]:
            load(name).options(late)
    parser.commands, parser.asked = commands.choices, "".join(argv[:1])
    return parser
