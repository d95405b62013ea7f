"""The parser of both programs: options in groups, words in any order, errors with near words.

merge-launch and merge-worker have one way to write help and to read a command line.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from ..errors import UsageError
from ..messages import nearest, printable
from .pages import columns, explain

GROUPS = ("options", "merge", "output", "machine", "job", "scheduler", "site", "more")
"""Titles of the groups of options, in the order of the help."""


class MissingWords(UsageError):
    """A command line that ends before it is complete."""


class Parser(argparse.ArgumentParser):
    """A parser of one command.

    Options stand anywhere between the words, are never abbreviated, and take the next word as
    their value even if it begins with `-`, unless it is an option itself.
    """

    def __init__(self, program: str, description: str, examples: Sequence[str] = ()) -> None:
        super().__init__(
            prog=program,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
            add_help=False,
            argument_default=None,
        )
        self._positionals.title = "arguments"
        groups = {title: self.add_argument_group(title) for title in GROUPS[1:]}
        self.groups = {"options": self._optionals, **groups}
        self.examples = tuple(examples)
        self.required: list[str] = []
        self.out_list = ""
        self.groups["more"].add_argument(
            "-h", "--help", action="help", help="print this help and exit"
        )

    def add_out(self, help: str, *, before: str = "", needed: bool = True, of: str = "OUT") -> None:
        """Add OUT as a word, and as `-o`, `--out`.

        The word is the last one, or the first one if a list of words `before` follows it.
        """
        self.add_argument("out", metavar=of, nargs="?", help=help)
        group = self.groups["output"]
        group.add_argument(
            "-o", "--out", dest="out_option", metavar=of, help=f"the same as the word {of}"
        )
        self.out_list = before
        self.required += ["out"] * needed

    def add_alias(self, flag: str, dest: str, **settings: Any) -> None:
        """Accept an older spelling of an option, which the help does not show."""
        self.add_argument(flag, dest=dest, help=argparse.SUPPRESS, **settings)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the values of the words. MissingWords or UsageError with the nearest option."""
        arguments = self.parse_args(self._in_order(words))
        if "out_option" in arguments:
            self._settle_out(arguments)
        missing = [name for name in self.required if not getattr(arguments, name)]
        if missing:
            names = [a.metavar or a.dest for a in self._actions if a.dest in missing]
            self.error(f"the following arguments are required: {', '.join(map(str, names))}")
        return arguments

    def _settle_out(self, arguments: argparse.Namespace) -> None:
        option = arguments.out_option
        del arguments.out_option
        if option is None:
            return
        if self.out_list and arguments.out is not None:
            others = getattr(arguments, self.out_list) or []
            setattr(arguments, self.out_list, [arguments.out, *others])
        elif arguments.out is not None:
            both = f"'{printable(arguments.out)}' and --out '{printable(option)}'"
            self.error(f"OUT is given twice: {both}; keep one")
        arguments.out = option

    def _in_order(self, words: Sequence[str]) -> list[str]:
        """Return the options, each in one word with its value, and then the other words."""
        known = {name: action for action in self._actions for name in action.option_strings}
        options, others, rest = list[str](), list[str](), list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                others += rest
                break
            name = word if word in known else word.partition("=")[0]
            if not word.startswith("-") or word == "-" or re.fullmatch(r"-[\d.]+", word):
                others.append(word)
            elif name in known:
                action = known[name]
                takes_one = action.nargs is None and name == word
                if takes_one and rest and rest[0].partition("=")[0] not in known:
                    word = f"{word}={rest.pop(0)}"
                options.append(word)
                if name == word and action.nargs not in (None, 0):
                    options += _values(action, rest, known)
            elif word[:2] in known and not word.startswith("--"):
                options.append(word)
            else:
                self.error(f"unknown option '{printable(name)}'{nearest(name, self._shown(known))}")
        return [*options, "--", *others] if others else options

    @staticmethod
    def _shown(known: Mapping[str, argparse.Action]) -> list[str]:
        return [name for name, action in known.items() if action.help != argparse.SUPPRESS]

    def error(self, message: str) -> NoReturn:
        incomplete = message.startswith("the following arguments are required")
        raise (MissingWords if incomplete else UsageError)(explain(self.prog, message))

    def format_usage(self) -> str:
        return f"usage: {self._usage_line()}\n"

    def format_help(self) -> str:
        self.usage = self._usage_line().replace("%", "%%")
        text = super().format_help()
        if self.examples:
            text += "\nexamples:\n" + "".join(f"  {line}\n" for line in self.examples)
        return text

    def _usage_line(self) -> str:
        needed = [a for a in self._actions if a.option_strings and a.required]
        words = [f"{action.option_strings[-1]} {action.metavar}" for action in needed]
        for action in self._actions:
            if not action.option_strings and action.help != argparse.SUPPRESS:
                words.append(self._usage_word(action))
        return " ".join([self.prog, "[options]", *words])

    def _usage_word(self, action: argparse.Action) -> str:
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        several = "…" if action.nargs in ("+", "*") else ""
        optional = action.nargs in ("?", "*") and action.dest not in self.required
        return f"[{name}{several}]" if optional else f"{name}{several}"


def _values(action: argparse.Action, rest: list[str], known: Collection[str]) -> Iterator[str]:
    """Take the values of an option of several from the words that follow it."""
    count = action.nargs if isinstance(action.nargs, int) else len(rest)
    while rest and count and rest[0] != "--" and rest[0].partition("=")[0] not in known:
        yield rest.pop(0)
        count -= 1


class _Formatter(argparse.HelpFormatter):
    """Help of 40 to 100 columns with `-o, --out DIR` in place of `-o DIR, --out DIR`."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{**settings, "width": columns(), "max_help_position": 28})

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        names = ", ".join(action.option_strings)
        return f"{names} {self._format_args(action, action.dest.upper())}"


def finish(parser: Parser) -> Parser:
    """Return a parser with its options completed: choices as metavars, and defaults in the help."""
    for action in parser._actions:
        if action.choices is not None and action.metavar is None:
            action.metavar = "|".join(map(str, action.choices))
        shown = action.help != argparse.SUPPRESS and action.option_strings
        has_default = action.default not in (None, False, "", (), []) and action.nargs != 0
        if shown and has_default and "default" not in (action.help or ""):
            action.help = f"{action.help or ''}; default: {action.default}".lstrip("; ")
    return parser
