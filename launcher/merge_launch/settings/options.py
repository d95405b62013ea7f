"""Options as dataclass fields: one field is a flag, an environment variable and a profile key.

Values of every origin are read here; which origin wins is decided in `profiles/precedence.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable
from typing import Any, Concatenate, NamedTuple, ParamSpec

from merge_worker.command_line.parser import Parser

P = ParamSpec("P")
METADATA = "option"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """Facts about an option besides name, type and default.

    `pattern` must match a whole value, and `expected` describes it in errors. Values of several
    origins add up where it `accumulates`. `title` is its group in the help; empty: that of the
    class.
    """

    help: str
    metavar: str | None = None
    pattern: str | None = None
    expected: str = ""
    short: str | None = None
    minimum: int | None = 0
    accumulates: bool = False
    title: str = ""


class Option(NamedTuple):
    """An option made of a field. `kind` is str, int, bool or tuple (of str, repeatable)."""

    name: str
    kind: type
    default: Any
    spec: OptionSpec

    @property
    def key(self) -> str:
        """The name in profiles and variables: a field that a word of Python names ends with `_`."""
        return self.name.rstrip("_")

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "MERGE_LAUNCH_" + self.key.upper()


class Fault(ValueError):
    """An invalid value; the text continues a sentence that begins with option and value."""


def _fields_with(spec: Callable[P, OptionSpec]) -> Callable[Concatenate[Any, P], Any]:
    def field(default: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return dataclasses.field(default=default, metadata={METADATA: spec(*args, **kwargs)})

    return field


option = _fields_with(OptionSpec)
"""Return a dataclass field that is an option, from its default and the values of an OptionSpec."""


def options_of(group: type) -> tuple[Option, ...]:
    """Return the options of a dataclass. Raises TypeError for a field type no option can have."""
    hints = typing.get_type_hints(group)
    return tuple(
        Option(field.name, _kind(hints[field.name]), field.default, field.metadata[METADATA])
        for field in dataclasses.fields(group)
        if METADATA in field.metadata
    )


def _kind(hint: Any) -> type:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    kind = typing.get_origin(hint) or hint
    if kind not in (str, int, bool, tuple):
        raise TypeError(f"an option cannot have the type {hint}")
    return typing.cast(type, kind)


def read(option: Option, value: object) -> Any:
    """Return a value of a flag, the environment or a profile as the field's type. Raises Fault."""
    if option.kind is tuple:
        return tuple(_checked(option, text) for text in _texts(value))
    if option.kind is bool:
        return _boolean(value)
    if option.kind is int:
        return _number(option, value)
    # An unquoted 12:00:00 in TOML is a time of day.
    if isinstance(value, bool) or not isinstance(value, str | int | float | datetime.time):
        raise Fault("must be text")
    return _checked(option, str(value))


def _texts(value: object) -> list[str]:
    lines = value.splitlines() if isinstance(value, str) else value
    if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
        raise Fault("must be a list of texts")
    return [line for line in lines if line]


def _boolean(value: object) -> bool:
    word = str(value).lower()
    if word not in TRUE + FALSE:
        raise Fault("must be true or false")
    return word in TRUE


def _number(option: Option, value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,18}", str(value)):
        raise Fault("must be a whole number")
    number = int(str(value))
    if option.spec.minimum is not None and number < option.spec.minimum:
        raise Fault(f"must be at least {option.spec.minimum}")
    return number


def _checked(option: Option, text: str) -> str:
    pattern = option.spec.pattern
    if pattern is not None and not re.fullmatch(pattern, text):
        raise Fault(f"must be {option.spec.expected}")
    if "\0" in text:
        raise Fault("must not contain a NUL character")
    return text


def add_options(parser: Parser, groups: Iterable[type], hidden: Collection[str] = ()) -> None:
    """Add the options of dataclasses to a parser; None means not given.

    The help does not show options named in `hidden`. Numbers stay text: `read` reports the same
    faults for flags and profiles.
    """
    for group in groups:
        title = getattr(group, "TITLE", "options")
        for option in options_of(group):
            place = parser.groups[option.spec.title or title]
            flags = [*filter(None, [option.spec.short]), option.flag]
            shown = option.name not in hidden
            text = _help(option) if shown else argparse.SUPPRESS
            place.add_argument(*flags, dest=option.name, help=text, **_settings(option))


def _help(option: Option) -> str:
    """Return the help of an option with its default."""
    text, default = option.spec.help, option.default
    if default in (None, False, (), "") or "default" in text:
        return text
    return f"{text}; default: {default}"


def _settings(option: Option) -> dict[str, Any]:
    if option.kind is bool:
        return {"action": "store_const", "const": True}
    words = option.spec.pattern or ""
    is_choice = re.fullmatch(r"[\w-]+(\|[\w-]+)+", words) is not None
    metavar = option.spec.metavar or (words if is_choice else "NAME")
    return {"metavar": metavar, "action": "append" if option.kind is tuple else "store"}
