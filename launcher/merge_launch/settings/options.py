"""Options as dataclass fields: one field is a flag, an environment variable and a profile key.

Values of every origin are read here; which origin wins is decided in `profiles/precedence.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Concatenate, NamedTuple, ParamSpec

import typer

P = ParamSpec("P")
METADATA = "option"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class OptionSpec:
    """Facts about an option besides name, type and default.

    `pattern` must match a whole value, and `expected` describes it in errors. Values of several
    origins add up where it `accumulates`.
    """

    help: str
    metavar: str | None = None
    pattern: str | None = None
    expected: str = ""
    short: str | None = None
    minimum: int | None = 0
    accumulates: bool = False


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


def parameters(groups: Iterable[type]) -> list[inspect.Parameter]:
    """Return the options of dataclasses as parameters of a typer command; None means not given."""
    return [_parameter(option) for group in groups for option in options_of(group)]


def _completion(pattern: str) -> Callable[[str], list[str]] | None:
    """Complete the words of an option that takes one of several."""
    words = pattern.split("|")
    if len(words) == 1 or not all(re.fullmatch(r"[\w-]+", word) for word in words):
        return None
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _parameter(option: Option) -> inspect.Parameter:
    spec = option.spec
    declared = typer.Option(
        *([spec.short] if spec.short else []),
        option.flag,
        help=spec.help,
        metavar=spec.metavar or (None if option.kind is bool else "WORD"),
        show_default=False,
        autocompletion=_completion(spec.pattern or ""),
    )
    # Typer passes numbers as text: `read` reports the same faults for flags and profiles.
    kind: Any = list[str] if option.kind is tuple else bool if option.kind is bool else str
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, declared],
    )
