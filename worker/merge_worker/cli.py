"""The command line of merge-worker: parses words, runs a command, prints errors, sets exit codes.

Nothing else prints errors or decides exit codes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .command_line import completion
from .command_line.pages import OPTIONS, page_of_commands, unknown_command
from .command_line.parser import MissingWords
from .commands import COMMANDS, GROUPS, RESUMED, Command, completers
from .commands.mergekit_options import translated
from .engine.options import Clock
from .errors import Stopped, UsageError, WorkerError
from .messages import print_line
from .system import torch_startup
from .system.progress import print_end, print_event
from .system.signals import BEGINS_ANEW, Signals, cancel_exit, stop_requested

BUG = "this is a bug in merge-worker; please report it with the lines above and the recipe"
DESCRIPTION = "Merge checkpoints of any architecture."
BY_NAME = {command.name: command for command in COMMANDS}


def entry(program: str = "merge-worker") -> NoReturn:
    """Run `main` and exit without the 0.4 s that torch takes to be torn down.

    `program` is the name that messages begin with: merge-launch has these commands too.
    """
    if completion.is_asked():
        complete()
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
    mode = ""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv, program)
        arguments.clock = clock
        mode = getattr(arguments, "progress", "")
        if arguments.command not in RESUMED:
            signals.way_out = BEGINS_ANEW
        if text := BY_NAME[arguments.command].run(arguments):
            print_line(text, sys.stdout)
        signals.over = True
        sys.stdout.flush()
        print_end(mode, 0, clock.elapsed_s)
        return 0
    except WorkerError as error:
        code = Stopped.exit_code if stop_requested() else error.exit_code
        print_end(mode, code, clock.elapsed_s, str(error), program)
        return code
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        text = f"interrupted; {signals.way_out}"
        print_end(mode, Stopped.exit_code, clock.elapsed_s, text, program)
        return Stopped.exit_code
    except SystemExit as error:  # argparse: 2 for a wrong command, 0 for --help
        return error.code if isinstance(error.code, int) else 2
    except BaseException:
        if stop_requested():  # a module that is half imported turns the signal into another error
            text = f"stopped by a signal; {signals.way_out}"
            print_end(mode, Stopped.exit_code, clock.elapsed_s, text, program)
            return Stopped.exit_code
        # Before Python 3.13 an uncaught error in a zip prints no source lines; this does.
        traceback.print_exc()
        print(f"merge-worker {__version__}: {BUG}", file=sys.stderr)
        return 1


def parse_arguments(words: Sequence[str], program: str = "merge-worker") -> argparse.Namespace:
    """Return the values of a command line; `command` is its name. UsageError with a near word.

    Prints a page and raises SystemExit for --help and --version, and where words are missing.
    """
    command = _command(words, program)
    rest, note = list(words[1:]), ""
    if command.name in ("merge", "average"):
        rest, note = translated(rest)
    parser = command.parser(program)
    try:
        arguments = parser.read(rest)
    except MissingWords:
        if rest:
            raise
        parser.print_help(sys.stderr)
        raise SystemExit(UsageError.exit_code) from None
    arguments.command = command.name
    if note:
        print_event(arguments.progress, "note", note)
    return arguments


def _command(words: Sequence[str], program: str) -> Command:
    """Return the command that the first word names. SystemExit for words that ask for a page."""
    first = words[0] if words else ""
    if first == "--version":
        print(f"{program} {__version__}")
        raise SystemExit(0)
    if first == completion.FLAG:
        print(completion.script(program, words[1] if len(words) > 1 else ""))
        raise SystemExit(0)
    if first in ("", "-h", "--help"):
        page = page_of_commands(program, DESCRIPTION, _rows(), OPTIONS)
        print(page, file=sys.stdout if first else sys.stderr)
        raise SystemExit(0 if first else UsageError.exit_code)
    if first not in BY_NAME:
        raise unknown_command(program, first, BY_NAME)
    return BY_NAME[first]


def _rows() -> dict[str, list[tuple[str, str]]]:
    return {
        title: [(each.name, each.help) for each in COMMANDS if each.group == title]
        for title in GROUPS
    }


def complete() -> None:
    """Answer a shell that asks for completions, and exit."""
    words = completion.words_so_far()
    if len(words) > 1 and words[0] in BY_NAME:
        parser = BY_NAME[words[0]].parser("merge-worker")
        completion.complete(parser, 1, completers.NAMES)
    completion.complete(completion.first_word(list(BY_NAME)), 0, {})
