"""The command line of merge-launch: finds the command, runs it, and reports a bug."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from merge_worker import __version__
from merge_worker.command_line import completion
from merge_worker.command_line.pages import OPTIONS, page_of_commands, unknown_command
from merge_worker.command_line.parser import MissingWords
from merge_worker.commands import MERGES, completers, mergekit_options
from merge_worker.errors import UsageError, WorkerError
from merge_worker.messages import nearest, printable

from . import backends
from .commands import GROUPS, REACHED, Command, commands
from .commands.decorators import guarded, say
from .job.source import names_recipe

PROGRAM = "merge-launch"
DESCRIPTION = "Merge model checkpoints, here or as one cluster job."
INTERRUPTED = 130
BUG = "This is a bug of merge-launch. Please report it with the lines above and the command."


def main() -> NoReturn:
    """Run the command line, or answer a shell that asks for completions."""
    if completion.is_asked():
        complete()
    if sys.argv[1:] and sys.argv[1] in REACHED:
        from merge_worker.cli import entry

        entry(PROGRAM)
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; a bug prints its traceback."""
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except SystemExit as end:  # of argparse, for --help
        return end.code if isinstance(end.code, int) else 2
    except WorkerError as error:
        say(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        say(BUG)
        return 1


def _run(given: Sequence[str]) -> int:
    elsewhere = {name for name in backends.names() if name != "local"}
    words, note = mergekit_options.translated(given, elsewhere.isdisjoint(given))
    if note:
        say(f"note: {note}")
    known = {each.name: each for each in commands()}
    words = with_local(words)
    first = words[0] if words else ""
    if first in ("", "-h", "--help"):
        page = page_of_commands(PROGRAM, DESCRIPTION, rows(), OPTIONS)
        print(page, file=sys.stdout if first else sys.stderr)
        return 0 if first else UsageError.exit_code
    if first == "--version":
        print(f"{PROGRAM} {__version__}")
        return 0
    if first == completion.FLAG:
        print(completion.script(PROGRAM, words[1] if len(words) > 1 else ""))
        return 0
    if first not in known:
        raise unknown_command(PROGRAM, first, [*known, *REACHED, "merge"])
    return run_command(known[first], words[1:])


def run_command(command: Command, words: Sequence[str]) -> int:
    """Read the words behind the name of a command, and run it."""
    place = command.place_in(words)
    asks_for_help = any(word in ("-h", "--help") for word in words)
    if command.place and (not place or (not words or words[0] in ("-h", "--help"))):
        _refuse_place(command, words)
        print(command.page(), file=sys.stdout if asks_for_help else sys.stderr)
        return 0 if asks_for_help else UsageError.exit_code
    parser, function = command.parser(place)
    try:
        arguments = parser.read(words)
    except MissingWords:
        if len(words) > (1 if place in words else 0):
            raise
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    return guarded(function, arguments)


def _refuse_place(command: Command, words: Sequence[str]) -> None:
    """Raise UsageError with the nearest place if a word stands where one should."""
    plain = [word for word in words if not word.startswith("-")]
    if len(plain) > command.place_at:
        word, places = plain[command.place_at], list(command.places())
        hint = nearest(word, places) or f"; one of {', '.join(places)}"
        raise UsageError(
            f"{command.name}: unknown {command.place.lower()} '{printable(word)}'{hint}\n"
            f"  see {PROGRAM} {command.name} --help"
        )


def rows() -> dict[str, list[tuple[str, str]]]:
    """Return names and lines of all commands by their group, those of the worker included."""
    here = ("merge", "merge here and now (= local)", MERGES)
    own = [here, *((each.name, each.help, each.group) for each in commands())]
    every = [*own, *((each.name, each.help, each.group) for each in REACHED.values())]
    return {
        title: [(name, text) for name, text, group in every if group == title] for title in GROUPS
    }


def with_local(words: list[str]) -> list[str]:
    """Return the words of a command with `local` for `merge`, and before a recipe alone."""
    first, known = words[0] if words else "-", [each.name for each in commands()]
    if first == "merge":
        return ["local", *words[1:]]
    if first.startswith("-") or first in known or not names_recipe(first):
        return words
    others = ", ".join(name for name in backends.names() if name != "local")
    say(f"note: '{printable(first)}' is merged here, as by 'local'; as a job: {others}")
    return ["local", *words]


def complete() -> None:
    """Answer a shell that asks for completions, and exit."""
    from .commands.jobs import complete_job
    from .profiles.file import complete as complete_profile

    names = {**completers.NAMES, "JOB": complete_job, "PROFILE": complete_profile}
    words = completion.words_so_far()
    known = {each.name: each for each in commands()}
    first = {"merge": "local"}.get(words[0], words[0])
    if len(words) > 1 and first in REACHED:
        completion.complete(REACHED[first].parser(PROGRAM), 1, names)
    if len(words) > 1 and first in known:
        command = known[first]
        place = command.place_in(words[1:-1]) or next(iter(command.places()), "")
        completion.complete(command.parser(place)[0], 1, names)
    completion.complete(completion.first_word([*known, *REACHED, "merge"]), 0, {})
