"""The command line of merge-worker: parses words, runs a command, prints errors, sets exit codes.

Nothing else prints errors or decides exit codes.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from . import __version__
from .commands import COMMANDS
from .commands.mergekit_options import join_negative_weights, translated
from .engine.options import Clock
from .errors import Stopped, UsageError, WorkerError
from .messages import nearest, print_line
from .system import torch_startup
from .system.signals import Signals, cancel_exit, stop_requested

BUG = "this is a bug in merge-worker; please report it with the lines above and the recipe"
BY_NAME = {command.name: command for command in COMMANDS}


def entry(program: str = "merge-worker") -> NoReturn:
    """Run `main` and exit without the 0.4 s that torch takes to be torn down.

    `program` is the name that messages begin with: merge-launch has these commands too.
    """
    torch_startup.prepare()
    code = main(program=program)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None, program: str = "merge-worker") -> int:
    """Run one command; returns its exit code."""
    signals = Signals()
    try:
        code = _main(argv, signals, program)
        signals.over = True
        return code
    except Stopped as error:  # a signal while another error was being printed
        print_line(f"{program}: {error}", sys.stderr)
        return error.exit_code
    finally:
        cancel_exit()


def _main(argv: Sequence[str] | None, signals: Signals, program: str) -> int:
    clock = Clock(time.monotonic())
    signals.take()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may not fit the locale
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv, program)
        arguments.clock = clock
        if text := BY_NAME[arguments.command].run(arguments):
            print_line(text, sys.stdout)
        signals.over = True
        sys.stdout.flush()
        return 0
    except WorkerError as error:
        print_line(f"{program}: {error}", sys.stderr)
        return Stopped.exit_code if stop_requested() else error.exit_code
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command to resume", file=sys.stderr)
        return Stopped.exit_code
    except SystemExit as error:  # argparse: 2 for a wrong command, 0 for --help
        return error.code if isinstance(error.code, int) else 2
    except BaseException:
        if stop_requested():  # a module that is half imported turns the signal into another error
            text = "stopped by a signal; run the same command to resume"
            print_line(f"{program}: {text}", sys.stderr)
            return Stopped.exit_code
        # Before Python 3.13 an uncaught error in a zip prints no source lines; this does.
        traceback.print_exc()
        print(f"merge-worker {__version__}: {BUG}", file=sys.stderr)
        return 1


def parse_arguments(words: Sequence[str], program: str = "merge-worker") -> argparse.Namespace:
    """Return the values of a command line; `command` is its name. UsageError with a near word.

    A command without the words that it needs prints its help. SystemExit.
    """
    if words[:1] in (["merge"], ["average"]):
        words, notes = translated(words)
        for note in notes:
            print_line(f"note: {note}", sys.stderr)
    words = join_negative_weights(words)
    parser = _Parser(prog=program, description="Merge checkpoints of any architecture.")
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.help)
        if words[:1] == [command.name]:
            command.add_options(subparser)
    try:
        arguments, unknown = parser.parse_known_args(words)
    except _MissingWords:
        if len(words) > 1:
            raise
        asked_for = subparsers.choices[words[0]] if words else parser
        asked_for.print_help(sys.stderr)
        raise SystemExit(UsageError.exit_code) from None
    if unknown:
        asked: _Parser = subparsers.choices[arguments.command]
        options = re.findall("--[a-z0-9-]+", asked.format_usage())
        kind = "option" if unknown[0].startswith("-") else "argument"
        hint = nearest(unknown[0].partition("=")[0], options)
        asked.error(f"unknown {kind} '{unknown[0]}'{hint}")
    return arguments


class _MissingWords(UsageError):
    """A command line that ends before it is complete."""


class _Parser(argparse.ArgumentParser):
    """A parser for merge-worker or one of its commands. Options cannot be abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        incomplete = message.startswith("the following arguments are required")
        kind = _MissingWords if incomplete else UsageError
        raise kind(explain_usage_error(self.prog, message))


def explain_usage_error(prog: str, message: str) -> str:
    """Rewrite a message of argparse: the nearest valid word, and where to read on."""
    if match := re.fullmatch(r"argument (.+?): invalid choice: '(.*)' \(choose .*\)", message):
        option, word = match.groups()
        choices = re.findall(r"[\w-]+", message.rpartition("from ")[2])
        if option == "COMMAND":
            option, choices = "command", list(BY_NAME)
        choice = f"unknown {option}" if option == "command" else f"{option}: unknown value"
        message = f"{choice} '{word}'{nearest(word, choices)}; one of {', '.join(choices)}"
    place = prog.partition(" ")[2]
    return f"{place}{': ' if place else ''}{message}\n  see {prog} --help"
